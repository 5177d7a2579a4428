"""Anthropic's messages, checked and in the form that chat templates take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from powerserve.server.errors import ApiError, invalid

TemplateMessage = dict[str, Any]


class TextBlock(msgspec.Struct, tag="text"):
    """Text."""

    text: str


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """What the model thought; its signature says nothing here."""

    thinking: str


class RedactedThinkingBlock(msgspec.Struct, tag="redacted_thinking"):
    """What another server would not show."""


class ImageBlock(msgspec.Struct, tag="image"):
    """An image."""


class DocumentBlock(msgspec.Struct, tag="document"):
    """A PDF file or a text with a title."""


class SearchResultBlock(msgspec.Struct, tag="search_result"):
    """A found page."""


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    """A call that the model made."""

    id: str
    name: str
    input: dict[str, Any] = {}


OutsideBlock = ImageBlock | DocumentBlock | SearchResultBlock


class ToolResultBlock(msgspec.Struct, tag="tool_result"):
    """What a call led to."""

    tool_use_id: str
    content: str | list[TextBlock | OutsideBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | OutsideBlock
)


class InputMessage(msgspec.Struct):
    """A message as clients send it."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


def template_messages(
    system: str | Sequence[TextBlock] | None, messages: Sequence[InputMessage]
) -> list[TemplateMessage]:
    """What the template gets; neighbours of the same role become one. Raises ApiError."""
    names = _tool_names(messages)
    result: list[TemplateMessage] = []
    if system:
        result.append({"role": "system", "content": _system_text(system)})
    for index, message in enumerate(messages):
        for each in _parts(message, f"messages[{index}].content", names):
            _append(result, each)
    if all(message["role"] == "system" for message in result):
        raise invalid("messages must hold at least one message with content", "messages")
    return result


def _tool_names(messages: Sequence[InputMessage]) -> dict[str, str]:
    """The tools that were called, by the ids of the calls."""
    return {
        block.id: block.name
        for message in messages
        if not isinstance(message.content, str)
        for block in message.content
        if isinstance(block, ToolUseBlock)
    }


def _system_text(system: str | Sequence[TextBlock]) -> str:
    return system if isinstance(system, str) else "\n".join(block.text for block in system)


def _parts(message: InputMessage, place: str, names: dict[str, str]) -> Iterator[TemplateMessage]:
    """The messages that one of Anthropic's amounts to: results of tools have their own role."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    for index, block in enumerate(message.content):
        if not isinstance(block, RedactedThinkingBlock):
            yield _part(message.role, block, f"{place}[{index}]", names)


def _part(role: str, block: Block, place: str, names: dict[str, str]) -> TemplateMessage:
    match block:
        case TextBlock(text=text):
            return {"role": role, "content": text}
        case ToolResultBlock() if role == "user":
            return _result(block, place, names)
        case ThinkingBlock(thinking=thinking) if role == "assistant":
            return {"role": role, "content": "", "reasoning_content": thinking}
        case ToolUseBlock() if role == "assistant":
            return {"role": role, "content": "", "tool_calls": [_call(block)]}
    raise _cannot_use(block, place)


def _call(block: ToolUseBlock) -> dict[str, Any]:
    function = {"name": block.name, "arguments": block.input}
    return {"id": block.id, "type": "function", "function": function}


def _result(block: ToolResultBlock, place: str, names: dict[str, str]) -> TemplateMessage:
    if block.tool_use_id not in names:
        raise invalid(
            f"{place}.tool_use_id: no message before has a tool_use block with the id "
            f"{block.tool_use_id!r}",
            f"{place}.tool_use_id",
        )
    text = _result_text(block.content or "", place)
    return {
        "role": "tool",
        "tool_call_id": block.tool_use_id,
        "name": names[block.tool_use_id],
        "content": f"Error: {text}" if block.is_error else text,
    }


def _result_text(content: str | list[TextBlock | OutsideBlock], place: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for index, block in enumerate(content):
        if not isinstance(block, TextBlock):
            raise _cannot_use(block, f"{place}.content[{index}]")
        texts.append(block.text)
    return "\n".join(texts)


def _cannot_use(block: Block, place: str) -> ApiError:
    kind = block.__struct_config__.tag
    if isinstance(block, OutsideBlock):
        return invalid(f"{place}: a block of type {kind!r} cannot be read; send text only", place)
    return invalid(f"{place}: a message of this role cannot have a block of type {kind!r}", place)


def _append(messages: list[TemplateMessage], message: TemplateMessage) -> None:
    """Add a message, to the one before if that has the same role: templates want turns."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != message["role"] or message["role"] == "tool":
        messages.append(message)
        return
    last["content"] = "\n".join(filter(None, (last["content"], message["content"])))
    for name in ("reasoning_content", "tool_calls"):
        if name in message:
            last[name] = last[name] + message[name] if name in last else message[name]
