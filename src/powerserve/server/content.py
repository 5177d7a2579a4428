"""From generated text to what an answer consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call of a tool: the first of an index has id and name, later ones more JSON."""

    index: int
    call_id: str = ""
    name: str = ""
    arguments: str = ""  # JSON text, in pieces


@dataclass(frozen=True, slots=True)
class Content:
    """What a piece of text turned out to be."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.reasoning or self.tool_calls)


NOTHING = Content()


class ContentParser(Protocol):
    """Reads one answer as it is generated."""

    def feed(self, text: str) -> Content:
        """Take the next piece of text."""
        ...

    def finish(self) -> Content:
        """What was held back, now that no more text will come."""
        ...


class PlainText:
    """An answer that is text and nothing else."""

    def feed(self, text: str) -> Content:
        """Take the next piece of text."""
        return Content(text)

    def finish(self) -> Content:
        """Nothing is ever held back."""
        return NOTHING
