"""OpenAI's messages, checked and in the form that chat templates take."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from powerserve.server.errors import invalid

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]


class ContentPart(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    """The function a model called."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(msgspec.Struct):
    """A call in an assistant's message."""

    function: CalledFunction
    id: str = ""
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """A message as clients send it."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


def template_messages(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """What the template gets. Raises ApiError for content that is not text."""
    if not messages:
        raise invalid("messages must hold at least one message", "messages")
    return [_template_message(index, message) for index, message in enumerate(messages)]


def _template_message(index: int, message: ChatMessage) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    place = f"messages[{index}].content"
    result: dict[str, Any] = {"role": role, "content": _text(message.content, place)}
    if message.content is None and not message.tool_calls:
        raise invalid(f"{place} is missing", place)
    if message.tool_calls:
        result["tool_calls"] = msgspec.to_builtins(message.tool_calls)
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            result[name] = value
    return result


def _text(content: str | list[ContentPart] | None, place: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(_part_text(part, place) for part in content)


def _part_text(part: ContentPart, place: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in ("text", "refusal", "input_text", "output_text") or text is None:
        raise invalid(
            f"{place}: a part of type {part.type!r} cannot be used; this server takes text only",
            place,
        )
    return text
