"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from powerserve.engine.sequence import FinishReason
from powerserve.sampler.params import MAX_TOP_LOGPROBS
from powerserve.server.answer import Answer, Choice, Delta, total_usage
from powerserve.server.content import ToolCallDelta
from powerserve.server.errors import invalid
from powerserve.server.events import Ended, TokenLogprob
from powerserve.server.openai.fields import GenerationFields, new_id
from powerserve.server.openai.messages import ChatMessage, template_messages
from powerserve.server.openai.usage import chance_body, timings_body, usage_body
from powerserve.server.request import ChatPrompt, GenerationRequest
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply, sse_frame

DONE = b"data: [DONE]\n\n"


class ChatRequest(GenerationFields, kw_only=True):
    """The body."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: msgspec.Raw | None = None
    functions: msgspec.Raw | None = None
    function_call: msgspec.Raw | None = None
    web_search_options: msgspec.Raw | None = None


async def chat_completions(serving: Serving, call: Call) -> Reply | Events:
    """Answer a conversation."""
    body = call.decode(ChatRequest)
    request = neutral_request(body)
    if body.stream:
        return Events(_stream(serving, body, request))
    async with serving.answer(request) as answer:
        return Reply(_completion(body, answer, await answer.choices()))


def neutral_request(body: ChatRequest) -> GenerationRequest:
    """The request in neutral form. Raises ApiError for what cannot be done."""
    _refuse_unsupported(body)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return GenerationRequest(
        model=body.model,
        prompt=ChatPrompt(
            template_messages(body.messages), variables=body.chat_template_kwargs or {}
        ),
        sampling=body.sampling(limit, _num_logprobs(body)),
        num_choices=body.num_choices,
    )


def finish_reason(ended: Ended, *, called_tools: bool) -> str:
    """OpenAI's word for why a choice ended."""
    if ended.reason in (FinishReason.LENGTH, FinishReason.CONTEXT):
        return "length"
    return "tool_calls" if called_tools else "stop"


def _refuse_unsupported(body: ChatRequest) -> None:
    for name in ("audio", "functions", "function_call", "web_search_options"):
        value = getattr(body, name)
        if value is not None and bytes(value) != b"null":
            advice = "; use `tools`" if name.startswith("function") else ""
            raise invalid(f"{name} is not supported by this server{advice}", name)
    if body.modalities not in (None, ["text"]):
        raise invalid("modalities: this server answers in text only", "modalities")


def _num_logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.top_logprobs is not None and not 0 <= body.top_logprobs <= MAX_TOP_LOGPROBS:
        raise invalid(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def _completion(body: ChatRequest, answer: Answer, choices: list[Choice]) -> dict[str, Any]:
    usage = total_usage(choice.ended for choice in choices)
    return {
        "id": new_id("powerserve-chat"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model or answer.runner.name,
        "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
        "usage": usage_body(usage),
        "timings": timings_body(usage),
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(choice.logprobs),
        "finish_reason": finish_reason(choice.ended, called_tools=bool(choice.tool_calls)),
    }


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}


def _logprobs(logprobs: list[TokenLogprob]) -> dict[str, Any] | None:
    return (
        {"content": [chance_body(each) for each in logprobs], "refusal": None} if logprobs else None
    )


async def _stream(
    serving: Serving, body: ChatRequest, request: GenerationRequest
) -> AsyncIterator[bytes]:
    async with serving.answer(request) as answer:
        stream = _ChatStream(body, body.model or answer.runner.name)
        for frame in stream.beginning(request.num_choices):
            yield frame
        async for delta in answer.deltas():
            for frame in stream.frames(delta):
                yield frame
        for frame in stream.ending():
            yield frame


@dataclass(slots=True)
class _ChatStream:
    """Writes the chunks of one answer."""

    body: ChatRequest
    model: str
    chunk_id: str = field(default_factory=lambda: new_id("powerserve-chat"))
    created: int = field(default_factory=lambda: int(time.time()))
    ended: list[Ended] = field(default_factory=list)
    callers: set[int] = field(default_factory=set)  # choices that called tools

    def beginning(self, num_choices: int) -> list[bytes]:
        """The role comes first, once for each choice."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta) for index in range(num_choices)]

    def frames(self, delta: Delta) -> list[bytes]:
        """The chunks of one step: content, then why it ended, which has a chunk of its own."""
        frames = []
        content = _delta_body(delta)
        if delta.content.tool_calls:
            self.callers.add(delta.choice)
        if content or delta.logprobs:
            frames.append(self._chunk(delta.choice, content, delta.logprobs))
        if delta.ended is not None:
            self.ended.append(delta.ended)
            reason = finish_reason(delta.ended, called_tools=delta.choice in self.callers)
            frames.append(self._chunk(delta.choice, {}, reason=reason))
        return frames

    def ending(self) -> list[bytes]:
        """Usage and timings if asked for, and the mark of the end."""
        if not self.body.wants_usage:
            return [DONE]
        usage = total_usage(self.ended)
        last = self._base() | {
            "choices": [],
            "usage": usage_body(usage),
            "timings": timings_body(usage),
        }
        return [sse_frame(last), DONE]

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
            "logprobs": _logprobs(list(logprobs)),
            "finish_reason": reason,
        }
        usage = {"usage": None} if self.body.wants_usage else {}
        return sse_frame(self._base() | {"choices": [choice]} | usage)

    def _base(self) -> dict[str, Any]:
        return {
            "id": self.chunk_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
        }


def _delta_body(delta: Delta) -> dict[str, Any]:
    content = delta.content
    body: dict[str, Any] = {}
    if content.text:
        body["content"] = content.text
    if content.reasoning:
        body["reasoning_content"] = content.reasoning
    if content.tool_calls:
        body["tool_calls"] = [_call_delta(call) for call in content.tool_calls]
    return body


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name} if call.name else {}
    body: dict[str, Any] = {"index": call.index}
    if call.call_id:
        body |= {"id": call.call_id, "type": "function"}
    return body | {"function": function | {"arguments": call.arguments}}
