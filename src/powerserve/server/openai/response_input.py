"""The input of /v1/responses: a text, or items, as messages for the chat template."""

from __future__ import annotations

from typing import Literal

import msgspec

from powerserve.server.errors import invalid
from powerserve.server.openai.messages import (
    CalledFunction,
    ChatMessage,
    ContentPart,
    Role,
    ToolCall,
)

ItemType = Literal["message", "function_call", "function_call_output", "reasoning"]


class InputItem(msgspec.Struct):
    """One item: a message, a call the model made, its result, or what the model thought."""

    type: ItemType = "message"
    role: Role = "user"
    content: str | list[ContentPart] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[ContentPart] = ""


def input_messages(instructions: str | None, given: str | list[InputItem]) -> list[ChatMessage]:
    """The conversation. Raises ApiError if there is none."""
    messages = [ChatMessage("system", instructions)] if instructions else []
    if isinstance(given, str):
        return [*messages, ChatMessage("user", given)]
    if not given:
        raise invalid("input must not be empty", "input")
    for item in given:
        _append(messages, item)
    return messages


def _append(messages: list[ChatMessage], item: InputItem) -> None:
    match item.type:
        case "message":
            messages.append(ChatMessage(item.role, item.content))
        case "function_call":
            _append_call(messages, item)
        case "function_call_output":
            messages.append(ChatMessage("tool", item.output, tool_call_id=item.call_id))
        case "reasoning":
            pass  # templates leave out what was thought in earlier turns


def _append_call(messages: list[ChatMessage], item: InputItem) -> None:
    """Calls of one turn are items of their own here, but belong to one message of the assistant."""
    call = ToolCall(CalledFunction(item.name, item.arguments), item.call_id)
    last = messages[-1] if messages else None
    if last is not None and last.role == "assistant":
        last.tool_calls = [*(last.tool_calls or ()), call]
    else:
        messages.append(ChatMessage("assistant", "", tool_calls=[call]))
