"""Calls whose arguments are a JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from powerserve.server.tool_calls.base import ToolCallFormat, arguments_schema, quoted
from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.parser import ToolCallParser
from powerserve.server.tool_calls.syntax import CallSyntax


@dataclass(frozen=True, slots=True)
class JsonCallFormat(ToolCallFormat):
    """Arguments stand between two texts, in the first of which NAME stands for the tool's."""

    syntax: CallSyntax = field(default_factory=CallSyntax)
    before_arguments: str = '{"name": "NAME", "arguments": '
    after_arguments: str = "}"

    @property
    def markup(self) -> tuple[str, ...]:
        return self.syntax.openers + self.syntax.closers + self.syntax.inner_tags

    @property
    def begins_as_json(self) -> bool:
        return (self.before_calls + self.before_arguments).startswith("{")

    def parser(self, tools: Sequence[ToolDefinition]) -> ToolCallParser:
        return ToolCallParser({tool.name for tool in tools}, self.syntax)

    def call_rules(self, rule: str, tool: ToolDefinition) -> list[str]:
        head = self.before_arguments.replace("NAME", tool.name)
        return [
            f"{rule}: {quoted(head)} {rule}_arguments {quoted(self.after_arguments)}",
            f"{rule}_arguments: %json {arguments_schema(tool)}",
        ]
