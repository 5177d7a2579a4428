"""A response, whole or as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from powerserve.server.answer import Answer
from powerserve.server.content import Content
from powerserve.server.events import Ended, Usage
from powerserve.server.openai.fields import finish_reason
from powerserve.server.openai.response_output import Body, ResponseOutput
from powerserve.server.surface import sse_frame


class ResponseWriter:
    """Writes one response; `base` holds the fields that do not change."""

    def __init__(self, base: Body) -> None:
        self._base = base
        self._output = ResponseOutput()
        self._number = 0

    async def whole(self, opening: AbstractAsyncContextManager[Answer]) -> Body:
        """The response when it has ended."""
        async with opening as answer:
            self._name(answer)
            async for delta in answer.deltas():
                self._output.add(delta.content)
                if delta.ended is not None:
                    self._output.close(_status(delta.ended))
                    return self._ended(delta.ended)
        raise AssertionError("an answer always has an end")

    async def frames(self, opening: AbstractAsyncContextManager[Answer]) -> AsyncIterator[bytes]:
        """All events."""
        async with opening as answer:
            self._name(answer)
            begun = self._base | {"status": "in_progress", "output": [], "usage": None}
            for kind in ("created", "in_progress"):
                yield self._frame({"type": f"response.{kind}", "response": begun})
            async for delta in answer.deltas():
                for event in self._events(delta.content, delta.ended):
                    yield self._frame(event)

    def _name(self, answer: Answer) -> None:
        self._base["model"] = self._base["model"] or answer.runner.name

    def _events(self, content: Content, ended: Ended | None) -> list[Body]:
        events = self._output.add(content)
        if ended is None:
            return events
        events += self._output.close(_status(ended))
        return [*events, {"type": f"response.{_status(ended)}", "response": self._ended(ended)}]

    def _ended(self, ended: Ended) -> Body:
        is_cut = _status(ended) == "incomplete"
        return self._base | {
            "status": _status(ended),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._output.items,
            "usage": _usage(ended.usage),
        }

    def _frame(self, event: Body) -> bytes:
        numbered: dict[str, Any] = event | {"sequence_number": self._number}
        self._number += 1
        return sse_frame(numbered, event["type"])


def _status(ended: Ended) -> str:
    return "incomplete" if finish_reason(ended) == "length" else "completed"


def _usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_generated,
    }
