"""/v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any

from powerserve.sampler.params import MAX_TOP_LOGPROBS
from powerserve.server.answer import Answer, Choice
from powerserve.server.content import ToolCallDelta
from powerserve.server.errors import invalid
from powerserve.server.openai.chat_stream import ChatStream
from powerserve.server.openai.fields import GenerationFields, finish_reason, new_id, refuse_given
from powerserve.server.openai.messages import ChatMessage, template_messages
from powerserve.server.openai.tools import chosen_tools
from powerserve.server.openai.usage import chat_logprobs, totals
from powerserve.server.original import generated_tokens
from powerserve.server.request import ChatPrompt, GenerationRequest
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply

_UNSUPPORTED = {
    "audio": "",
    "functions": "use `tools`",
    "function_call": "use `tool_choice`",
    "web_search_options": "",
}


class ChatRequest(GenerationFields, kw_only=True):
    """The body."""

    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    web_search_options: Any = None


async def chat_completions(serving: Serving, call: Call) -> Reply | Events:
    """Answer a conversation."""
    body = call.decode(ChatRequest)
    compat = serving.settings.compat
    request = _neutral(body, compat)
    if body.stream:
        stream = ChatStream(body, request.num_choices, compat)
        return Events(stream.frames(serving.answer(request)))
    async with serving.answer(request) as answer:
        return Reply(_completion(body, answer, await answer.choices(), compat))


def _neutral(body: ChatRequest, compat: bool) -> GenerationRequest:
    """The request in neutral form. Raises ApiError or UsageError for what cannot be done."""
    refuse_given(body, _UNSUPPORTED)
    if body.modalities not in (None, ["text"]):
        raise invalid("modalities: this server answers in text only", "modalities")
    prompt = ChatPrompt(
        template_messages(body.messages),
        chosen_tools(body.tools, body.tool_choice, body.parallel_tool_calls),
        body.chat_template_kwargs or {},
    )
    return GenerationRequest(
        model=body.model,
        prompts=[prompt],
        sampling=body.sampling(generated_tokens(body.model, _limit(body), compat), _top(body)),
        num_choices=body.num_choices,
        grammar=body.chosen_grammar(),
    )


def _limit(body: ChatRequest) -> int | None:
    """The tokens asked for, by whichever name."""
    names = (body.max_completion_tokens, body.max_tokens, body.n_predict)
    return next((limit for limit in names if limit is not None), None)


def _top(body: ChatRequest) -> int | None:
    """How many alternatives to report; None: no log-probabilities. Raises ApiError."""
    top = body.top_logprobs
    if top is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true", "top_logprobs")
    if top is not None and not 0 <= top <= MAX_TOP_LOGPROBS:
        raise invalid(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs")
    return (top or 0) if body.logprobs else None


def _completion(
    body: ChatRequest, answer: Answer, choices: list[Choice], compat: bool
) -> dict[str, Any]:
    return {
        "id": new_id("powerserve-chat" if compat else "chatcmpl"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.model or answer.runner.name,
        "choices": [_choice(index, choice) for index, choice in enumerate(choices)],
        **totals([choice.ended for choice in choices], body.num_choices, compat),
    }


def _choice(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.text,
        "refusal": None,
        "annotations": [],
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [_tool_call(call) for call in choice.tool_calls]
    reason = finish_reason(choice.ended)
    return {
        "index": index,
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs),
        "finish_reason": "tool_calls" if choice.tool_calls and reason == "stop" else reason,
    }


def _tool_call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.call_id, "type": "function", "function": function}
