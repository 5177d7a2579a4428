"""The tools that a request offers, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from powerserve.core.errors import UsageError

MAX_TOOLS = 128  # as in OpenAI's API

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A function the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    description: str = ""

    def as_openai(self) -> dict[str, Any]:
        """The form that chat templates expect."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


def tool_definitions(tools: Sequence[Any]) -> list[ToolDefinition]:
    """Check tools in OpenAI's form, `{"type": "function", "function": {…}}`.

    Raises UsageError with the place and what is wrong there.
    """
    if len(tools) > MAX_TOOLS:
        raise UsageError(f"tools has {len(tools)} entries; at most {MAX_TOOLS} are allowed")
    definitions = [_definition(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    names = [definition.name for definition in definitions]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UsageError(f"tools[{index}] has the name “{name}” a second time")
    return definitions


def select_tool(tools: Sequence[ToolDefinition], name: str) -> ToolDefinition:
    """The tool of this name. Raises UsageError if it is not among `tools`."""
    for tool in tools:
        if tool.name == name:
            return tool
    known = ", ".join(tool.name for tool in tools) or "none"
    raise UsageError(f"tool_choice names “{name}”, which is not among the tools ({known})")


def _definition(place: str, tool: Any) -> ToolDefinition:
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function":
        raise UsageError(f'{place} must be an object with the type "function"')
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise UsageError(f"{place}.function must be an object")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UsageError(f"{place}.function.parameters must be a JSON schema, which is an object")
    _check_arguments_type(place, parameters or {})
    return ToolDefinition(
        _name(place, function.get("name")),
        parameters or {},
        _description(place, function.get("description")),
    )


def _name(place: str, name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"{place}.function.name must be 1 to 64 letters, digits, dots, dashes or underscores"
        )
    return name


def _description(place: str, description: Any) -> str:
    if description is not None and not isinstance(description, str):
        raise UsageError(f"{place}.function.description must be text")
    return description or ""


def _check_arguments_type(place: str, parameters: Mapping[str, Any]) -> None:
    if parameters.get("type", "object") != "object":
        raise UsageError(f'{place}.function.parameters must have the type "object"')
