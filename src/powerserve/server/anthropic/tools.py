"""`tools` and `tool_choice`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from powerserve.server.errors import invalid
from powerserve.server.request import Tools, ToolUse
from powerserve.server.tool_calls import tool_definitions

_USES = {
    "auto": ToolUse.AUTO,
    "any": ToolUse.REQUIRED,
    "tool": ToolUse.REQUIRED,
    "none": ToolUse.NONE,
}


class Tool(msgspec.Struct):
    """A tool of the client's; those that Anthropic runs itself have another type."""

    name: str = ""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class ToolChoice(msgspec.Struct):
    """`tool_choice`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


def chosen_tools(tools: Sequence[Tool], choice: ToolChoice | None) -> Tools:
    """What may be called, from the fields of a request. Raises ApiError or UsageError."""
    definitions = tool_definitions([_openai_form(index, tool) for index, tool in enumerate(tools)])
    if choice is None:
        return Tools(definitions)
    if choice.type == "tool" and choice.name is None:
        raise invalid("tool_choice needs the `name` of a tool", "tool_choice.name")
    return Tools(
        definitions,
        _USES[choice.type],
        name=choice.name if choice.type == "tool" else None,
        # Only if asked for: small models that may call again do not know when to stop.
        parallel=choice.disable_parallel_tool_use is False,
    )


def _openai_form(index: int, tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise invalid(
            f"tools[{index}]: this server runs no tools itself, so {tool.type!r} is not one of "
            "its; describe your own with name and input_schema",
            f"tools[{index}].type",
        )
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
    }
    return {"type": "function", "function": function}
