"""/api/chat."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from powerserve.server.errors import invalid
from powerserve.server.ollama.fields import GenerationFields
from powerserve.server.ollama.lines import CONTENT_TYPE, AnswerWriter, Part
from powerserve.server.ollama.loading import load_or_unload
from powerserve.server.request import ChatPrompt, Tools, split_prefill
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply
from powerserve.server.tool_calls import tool_definitions


class CalledFunction(msgspec.Struct):
    """The function a model called."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    """A call in an assistant's message."""

    function: CalledFunction
    id: str = ""
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """A message as clients send it."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(GenerationFields, kw_only=True):
    """The body."""

    messages: list[ChatMessage] | None = None
    tools: list[dict[str, Any]] | None = None

    def prompt(self) -> ChatPrompt:
        """The conversation in neutral form. Raises ApiError or UsageError."""
        messages = [
            _template_message(index, message) for index, message in enumerate(self.messages or ())
        ]
        messages, prefill = split_prefill(messages)
        tools = Tools(tool_definitions(self.tools or ()))
        return ChatPrompt(messages, tools, self.variables(), prefill)


async def chat(serving: Serving, call: Call) -> Reply | Events:
    """Answer a conversation; without messages, load the model or unload it."""
    body = call.decode(ChatRequest)
    if not body.messages:
        return Reply(await load_or_unload(serving, body, _shape))
    answer = body.answer(serving, body.prompt())
    writer = AnswerWriter(body.model, _shape, shows_thinking=body.shows_thinking)
    if body.is_stream:
        return Events(writer.frames(answer), CONTENT_TYPE)
    return Reply(await writer.whole(answer))


def _shape(part: Part) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": part.text}
    if part.thinking:
        message["thinking"] = part.thinking
    if part.tool_calls:
        message["tool_calls"] = part.tool_calls
    return {"message": message}


def _template_message(index: int, message: ChatMessage) -> dict[str, Any]:
    if message.images:
        place = f"messages[{index}].images"
        raise invalid(f"{place} cannot be used: this server reads text only", place)
    result: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.tool_calls:
        result["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    renamed = {
        "reasoning_content": message.thinking,
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return result | {name: value for name, value in renamed.items() if value}
