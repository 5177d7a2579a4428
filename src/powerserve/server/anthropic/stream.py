"""An answer as server-sent events: a message that begins, content blocks one by one, its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from powerserve.server.answer import PAUSE, Answer, Delta
from powerserve.server.anthropic.endings import ending, usage_body, usage_counts
from powerserve.server.content import Content, ToolCallDelta
from powerserve.server.events import Ended
from powerserve.server.surface import sse_frame

Event = dict[str, Any]
_THINKING = {"type": "thinking", "thinking": "", "signature": ""}
_PING = {"type": "ping"}
_PING_S = 10.0  # while nothing else comes, as in a long prefill: proxies close silent connections
_TEXT = {"type": "text", "text": "", "citations": None}


class MessageStream:
    """Writes the events of one answer."""

    def __init__(
        self, base: dict[str, Any], *, shows_thinking: bool, ping_s: float = _PING_S
    ) -> None:
        """`base` holds the fields of the message that are known beforehand; `ping_s`: the longest
        silence."""
        self._base = base
        self._shows_thinking = shows_thinking
        self._ping_s = ping_s
        self._index = 0  # of the block that is open, or will be next
        self._open: dict[str, Any] | None = None  # that block, as it began
        self._called_tools = False

    async def frames(self, opening: AbstractAsyncContextManager[Answer]) -> AsyncIterator[bytes]:
        """The whole stream."""
        async with opening as answer:
            yield _frame(self._begin(answer))
            yield _frame(_PING)  # as Anthropic does; clients pass it over
            async for delta in answer.deltas(self._ping_s):
                if delta is PAUSE:
                    yield _frame(_PING)
                for event in self._events(delta):
                    yield _frame(event)

    def _begin(self, answer: Answer) -> Event:
        message = self._base | {
            "model": self._base["model"] or answer.runner.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "stop_details": None,
            "container": None,
            # How much of it is cached is not known before it is computed.
            "usage": usage_counts(answer.num_prompt_tokens),
        }
        return {"type": "message_start", "message": message}

    def _events(self, delta: Delta) -> Iterator[Event]:
        yield from self._content(delta.content)
        if delta.ended is not None:
            yield from self._close()
            yield self._ended(delta.ended)
            yield {"type": "message_stop"}

    def _content(self, content: Content) -> Iterator[Event]:
        if content.reasoning and self._shows_thinking:
            yield from self._enter(_THINKING)
            yield self._delta({"type": "thinking_delta", "thinking": content.reasoning})
        if content.text:
            yield from self._enter(_TEXT)
            yield self._delta({"type": "text_delta", "text": content.text})
        for call in content.tool_calls:
            yield from self._call(call)

    def _call(self, call: ToolCallDelta) -> Iterator[Event]:
        if call.name:
            self._called_tools = True
            yield from self._enter(tool_use_block(call))
        if call.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def _enter(self, block: dict[str, Any]) -> Iterator[Event]:
        """Begin a block, unless it is the one that is open."""
        if self._open is block:
            return
        yield from self._close()
        self._open = block
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[Event]:
        if self._open is None:
            return
        if self._open is _THINKING:
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": self._index}
        self._open = None
        self._index += 1

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _ended(self, ended: Ended) -> Event:
        return {
            "type": "message_delta",
            "delta": ending(ended, called_tools=self._called_tools),
            "usage": usage_body(ended.usage),
        }


def tool_use_block(call: ToolCallDelta) -> dict[str, Any]:
    """The block of a call, without its input."""
    call_id = call.call_id.replace("call_", "toolu_", 1)
    return {
        "type": "tool_use",
        "id": call_id,
        "name": call.name,
        "input": {},
        "caller": {"type": "direct"},
    }


def _frame(event: Event) -> bytes:
    return sse_frame(event, event["type"])
