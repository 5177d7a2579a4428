"""`tools` and `tool_choice`, of chats and of responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from powerserve.server.errors import invalid
from powerserve.server.request import Tools, ToolUse
from powerserve.server.tool_calls import tool_definitions


def chosen_tools(
    tools: Sequence[dict[str, Any]] | None,
    choice: str | dict[str, Any] | None,
    parallel: bool | None,
) -> Tools:
    """What may be called, from the fields of a request. Raises ApiError or UsageError."""
    definitions = tool_definitions([_nested(tool) for tool in tools or ()])
    several = parallel is True  # small models that may call again do not know when to stop
    if isinstance(choice, dict):
        return Tools(definitions, name=_named(choice), parallel=several)
    return Tools(definitions, _use(choice), parallel=several)


def _nested(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool in the form of chats; responses have its fields beside the type."""
    if tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": tool}


def _use(choice: str | None) -> ToolUse:
    try:
        return ToolUse(choice or "auto")
    except ValueError:
        raise invalid(
            f"tool_choice must be auto, none, required or a function, not {choice!r}", "tool_choice"
        ) from None


def _named(choice: dict[str, Any]) -> str:
    function = choice.get("function", choice)
    name = function.get("name") if isinstance(function, dict) else None
    if choice.get("type") != "function" or not isinstance(name, str):
        raise invalid("tool_choice must name a function", "tool_choice")
    return name
