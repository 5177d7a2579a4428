"""What all parsers of tool calls have in common: states that read a buffer as text comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from powerserve.server.content import Content, ToolCallDelta


class CallReader(ABC):
    """Reads one answer, piece by piece.

    A state is a method that reads what it can of the buffer and returns whether another state shall
    go on; it is told whether more text may come. What it finds goes to `_texts` and `_deltas`.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._read: Callable[[bool], bool] = self._read_start
        self._opened = ""  # what led to the call that may begin in the buffer
        self._num_calls = 0
        self._texts: list[str] = []
        self._deltas: list[ToolCallDelta] = []

    def feed(self, text: str) -> Content:
        """Take the next piece of text."""
        self._buffer += text
        return self._advance(is_last=False)

    def finish(self) -> Content:
        """What was held back, now that no more text will come."""
        return self._advance(is_last=True)

    @abstractmethod
    def _read_start(self, is_last: bool) -> bool:
        """The first state."""

    def _advance(self, *, is_last: bool) -> Content:
        while self._read(is_last):
            pass
        content = Content("".join(self._texts), tool_calls=tuple(self._deltas))
        self._texts, self._deltas = [], []
        return content

    def _enter(self, state: Callable[[bool], bool]) -> bool:
        self._read = state
        return True

    def _begin_call_of(self, call_id: str, name: str) -> None:
        self._deltas.append(ToolCallDelta(self._num_calls, call_id, name))
        self._num_calls += 1

    def _emit_arguments(self, text: str) -> None:
        if text:
            self._deltas.append(ToolCallDelta(self._num_calls - 1, arguments=text))
