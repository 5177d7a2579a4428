"""A chat's answer as server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from powerserve.server.answer import Answer, Delta
from powerserve.server.content import Content, ToolCallDelta
from powerserve.server.events import Ended, TokenLogprob
from powerserve.server.openai.fields import DONE, GenerationFields, finish_reason, new_id
from powerserve.server.openai.usage import chat_logprobs, totals
from powerserve.server.surface import sse_frame


class ChatStream:
    """Writes the chunks of one answer."""

    def __init__(self, body: GenerationFields, num_choices: int, compat: bool) -> None:
        self._wants_usage = body.wants_usage
        self._num_choices = num_choices
        self._compat = compat
        self._endings: dict[int, Ended] = {}
        self._callers: set[int] = set()  # choices that called tools
        self._base = {
            "id": new_id("powerserve-chat" if compat else "chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": body.model,
        }

    async def frames(self, opening: AbstractAsyncContextManager[Answer]) -> AsyncIterator[bytes]:
        """The whole stream: roles, content as it comes, how each choice ended, usage if wanted."""
        async with opening as answer:
            self._base["model"] = self._base["model"] or answer.runner.name
            for index in range(self._num_choices):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            async for delta in answer.deltas():
                for frame in self._delta_frames(delta):
                    yield frame
        if self._wants_usage:
            yield self._usage_frame()
        yield DONE

    def _delta_frames(self, delta: Delta) -> list[bytes]:
        """Content, then why it ended, which has a chunk of its own."""
        frames = []
        if delta.content.tool_calls:
            self._callers.add(delta.choice)
        if delta.content or delta.logprobs:
            frames.append(self._chunk(delta.choice, _body(delta.content), delta.logprobs))
        if delta.ended is not None:
            self._endings[delta.choice] = delta.ended
            frames.append(self._chunk(delta.choice, {}, reason=self._reason(delta)))
        return frames

    def _reason(self, delta: Delta) -> str:
        assert delta.ended is not None
        reason = finish_reason(delta.ended)
        return "tool_calls" if delta.choice in self._callers and reason == "stop" else reason

    def _usage_frame(self) -> bytes:
        endings = [self._endings[index] for index in range(self._num_choices)]
        ending = totals(endings, self._num_choices, self._compat)
        return sse_frame(self._base | {"choices": []} | ending)

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: tuple[TokenLogprob, ...] = (),
        reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(logprobs),
            "finish_reason": reason,
        }
        usage = {"usage": None} if self._wants_usage else {}
        return sse_frame(self._base | {"choices": [choice]} | usage)


def _body(content: Content) -> dict[str, Any]:
    body: dict[str, Any] = {}
    if content.text:
        body["content"] = content.text
    if content.reasoning:
        body["reasoning_content"] = content.reasoning
    if content.tool_calls:
        body["tool_calls"] = [_call(call) for call in content.tool_calls]
    return body


def _call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name} if call.name else {}
    identity = {"id": call.call_id, "type": "function"} if call.call_id else {}
    return {"index": call.index, **identity, "function": function | {"arguments": call.arguments}}
