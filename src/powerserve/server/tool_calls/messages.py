"""Conversations with tools for templates that know nothing of tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.generic import tool_instructions

Message = Mapping[str, Any]


def spelled_out(messages: Sequence[Message], tools: Sequence[ToolDefinition]) -> list[Message]:
    """The messages with tools, calls and results as text; unchanged where there are none."""
    plain = [_plain(message) for message in messages]
    if not tools:
        return plain
    instructions = tool_instructions(tools)
    if plain and plain[0].get("role") == "system":
        instructions = f"{plain[0]['content']}\n\n{instructions}"
        plain = plain[1:]
    return [{"role": "system", "content": instructions}, *plain]


def _plain(message: Message) -> Message:
    if message.get("role") == "tool":
        return {"role": "user", "content": f"The result of the call: {message['content']}"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    spelled = "\n".join(_spelled(call["function"]) for call in calls)
    content = "\n".join(filter(None, (message["content"], spelled)))
    return {"role": message["role"], "content": content}


def _spelled(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}'
