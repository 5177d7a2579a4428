"""/v1/responses, without memory: the client sends the whole conversation each time."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from powerserve.server.openai.fields import new_id, refuse_given
from powerserve.server.openai.formats import ResponseFormat, format_grammar
from powerserve.server.openai.messages import template_messages
from powerserve.server.openai.response_input import InputItem, input_messages
from powerserve.server.openai.response_stream import REPORTED_SAMPLING, ResponseWriter
from powerserve.server.openai.tools import chosen_tools
from powerserve.server.request import ChatPrompt, GenerationRequest
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply

_KEEPS_NOTHING = "it keeps nothing, so send the whole conversation as `input`"
_UNSUPPORTED = {
    "previous_response_id": _KEEPS_NOTHING,
    "conversation": _KEEPS_NOTHING,
    "background": "",
    "prompt": "",
}


class TextOptions(msgspec.Struct):
    """`text`."""

    format: ResponseFormat | None = None


class ResponseRequest(msgspec.Struct, kw_only=True):
    """The body."""

    input: str | list[InputItem]
    model: str = ""
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    previous_response_id: Any = None
    conversation: Any = None
    background: Any = None
    prompt: Any = None


async def responses(serving: Serving, call: Call) -> Reply | Events:
    """Answer a conversation."""
    body = call.decode(ResponseRequest)
    refuse_given(body, _UNSUPPORTED)
    request = _neutral(body)
    answer = serving.answer(request)
    writer = ResponseWriter(_base(body), request)
    return Events(writer.frames(answer)) if body.stream else Reply(await writer.whole(answer))


def _neutral(body: ResponseRequest) -> GenerationRequest:
    """The request in neutral form. Raises ApiError or UsageError for what cannot be done."""
    sampling = {name: getattr(body, name) for name in REPORTED_SAMPLING}
    sampling["max_tokens"] = body.max_output_tokens
    prompt = ChatPrompt(
        template_messages(input_messages(body.instructions, body.input)),
        chosen_tools(body.tools, body.tool_choice, body.parallel_tool_calls),
    )
    return GenerationRequest(
        model=body.model,
        prompts=[prompt],
        sampling={name: value for name, value in sampling.items() if value is not None},
        grammar=format_grammar(body.text.format if body.text else None),
    )


def _base(body: ResponseRequest) -> dict[str, Any]:
    """The fields of a response that are known beforehand."""
    text_format = body.text.format if body.text else None
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "model": body.model,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "store": False,
        "background": False,
        "completed_at": None,
        "max_tool_calls": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": None,
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "text": {"format": text_format or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_whole_tool(tool) for tool in body.tools or ()],
        "top_logprobs": 0,
        "truncation": "disabled",
    }


def _whole_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool with every field that it has in an answer."""
    return {"description": None, "parameters": None, "strict": None} | tool
