"""The output of /v1/responses: items that grow, and the events that tell of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from powerserve.server.content import Content, ToolCallDelta
from powerserve.server.openai.fields import new_id

Body = dict[str, Any]


class OutputItem(ABC):
    """A message, a call of a tool, or reasoning."""

    def __init__(self, index: int, prefix: str) -> None:
        self._place = {"output_index": index, "item_id": new_id(prefix)}

    @abstractmethod
    def body(self, status: str) -> Body:
        """The item as it is now."""

    @abstractmethod
    def beginning(self) -> list[Body]:
        """The events after `output_item.added`."""

    @abstractmethod
    def grown(self, text: str) -> Body:
        """Add text; the event about it."""

    @abstractmethod
    def ending(self) -> list[Body]:
        """The events before `output_item.done`."""

    def added(self) -> list[Body]:
        """All events of a new item."""
        return [self._item("added", "in_progress"), *self.beginning()]

    def done(self, status: str) -> list[Body]:
        """All events of an item that has ended."""
        return [*self.ending(), self._item("done", status)]

    def _item(self, what: str, status: str) -> Body:
        return {
            "type": f"response.output_item.{what}",
            "output_index": self._place["output_index"],
            "item": self.body(status),
        }


class TextItem(OutputItem):
    """A message, or reasoning: one part of text."""

    def __init__(self, index: int, *, is_reasoning: bool) -> None:
        super().__init__(index, "rs" if is_reasoning else "msg")
        self._is_reasoning = is_reasoning
        self._kind = "reasoning_text" if is_reasoning else "output_text"
        self._text = ""

    def body(self, status: str) -> Body:
        """The item as it is now."""
        item = {"id": self._place["item_id"], "status": status}
        content = [] if status == "in_progress" else [self._part()]
        if self._is_reasoning:
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}

    def beginning(self) -> list[Body]:
        """The part begins, without text."""
        return [self._event("response.content_part.added", part=self._part())]

    def grown(self, text: str) -> Body:
        """Add text; the event about it."""
        self._text += text
        return self._event(f"response.{self._kind}.delta", delta=text, **self._logprobs())

    def ending(self) -> list[Body]:
        """The text, then the part, is complete."""
        text = self._event(f"response.{self._kind}.done", text=self._text, **self._logprobs())
        return [text, self._event("response.content_part.done", part=self._part())]

    def _part(self) -> Body:
        part: Body = {"type": self._kind, "text": self._text}
        return part if self._is_reasoning else part | {"annotations": [], "logprobs": []}

    def _logprobs(self) -> Body:
        return {} if self._is_reasoning else {"logprobs": []}

    def _event(self, kind: str, **fields: Any) -> Body:
        return {"type": kind, **self._place, "content_index": 0, **fields}


class CallItem(OutputItem):
    """A call of a tool."""

    def __init__(self, index: int, call: ToolCallDelta) -> None:
        super().__init__(index, "fc")
        self._call = call
        self._arguments = ""

    def body(self, status: str) -> Body:
        """The item as it is now."""
        return {
            "id": self._place["item_id"],
            "type": "function_call",
            "status": status,
            "call_id": self._call.call_id,
            "name": self._call.name,
            "arguments": self._arguments,
        }

    def beginning(self) -> list[Body]:
        """Nothing more: arguments come piece by piece."""
        return []

    def grown(self, text: str) -> Body:
        """Add arguments; the event about it."""
        self._arguments += text
        return {"type": "response.function_call_arguments.delta", **self._place, "delta": text}

    def ending(self) -> list[Body]:
        """The arguments are complete."""
        kind = "response.function_call_arguments.done"
        return [
            {"type": kind, **self._place, "name": self._call.name, "arguments": self._arguments}
        ]


class ResponseOutput:
    """Collects one answer's content as items; a new kind of content begins a new item."""

    def __init__(self) -> None:
        self._bodies: list[Body] = []  # of items that have ended
        self._open: OutputItem | None = None
        self._open_kind: object = None

    @property
    def items(self) -> list[Body]:
        """The items that have ended."""
        return list(self._bodies)

    def add(self, content: Content) -> list[Body]:
        """Take the next content; the events it amounts to."""
        events: list[Body] = []
        if content.reasoning:
            events += self._grow("reasoning", content.reasoning)
        if content.text:
            events += self._grow("text", content.text)
        for call in content.tool_calls:
            events += self._grow(call.index, call.arguments, call)
        return events

    def close(self, status: str = "completed") -> list[Body]:
        """End the open item, if there is one."""
        if self._open is None:
            return []
        self._bodies.append(self._open.body(status))
        events = self._open.done(status)
        self._open = None
        return events

    def _grow(self, kind: object, text: str, call: ToolCallDelta | None = None) -> list[Body]:
        events: list[Body] = []
        if self._open is None or kind != self._open_kind:
            events += self.close()
            index = len(self._bodies)
            self._open_kind = kind
            self._open = (
                TextItem(index, is_reasoning=kind == "reasoning")
                if call is None
                else CallItem(index, call)
            )
            events += self._open.added()
        return [*events, self._open.grown(text)] if text else events
