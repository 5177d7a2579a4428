"""`<function=name>` with `<parameter=key>` inside: Qwen3-Coder, and later models of Qwen.

Source: the chat template of Qwen3-Coder, which tells the model to write

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

A value is text as it is, without quotes or escapes; numbers, lists and objects are JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from powerserve.server.tool_calls.base import SCHEMA_OPTIONS, ToolCallFormat, quoted
from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.xml_parser import (
    CLOSE,
    END_OF_PARAMETER,
    OPEN,
    XmlCallParser,
    is_text,
    properties_of,
)

_LONGEST_COUNTED = 1000  # characters; larger bounds are not worth what they cost to follow


@dataclass(frozen=True, slots=True)
class XmlCallFormat(ToolCallFormat):
    """Arguments are elements."""

    @property
    def markup(self) -> tuple[str, ...]:
        return (OPEN, CLOSE)

    @property
    def begins_as_json(self) -> bool:
        return False

    def parser(self, tools: Sequence[ToolDefinition]) -> XmlCallParser:
        return XmlCallParser(tools)

    def call_rules(self, rule: str, tool: ToolDefinition) -> list[str]:
        """The parameters in the schema's order; those that are not required may be left out."""
        required = tool.parameters.get("required", ())
        parts, rules = [], []
        for index, (key, schema) in enumerate(properties_of(tool).items()):
            part = f"{rule}_{index}"
            parts.append(part if key in required else f"{part}?")
            value, more = _value_rules(part, schema, tool)
            head = quoted(f"<parameter={key}>\n")
            rules += [f'{part}: {head} {value} "\\n"', *more]
        head, tail = f"{OPEN}\n<function={tool.name}>\n", f"</function>\n{CLOSE}"
        return [f"{rule}: {quoted(head)} {' '.join(parts)} {quoted(tail)}", *rules]


QWEN3_CODER = XmlCallFormat("qwen3-coder")


def _length(schema: Any) -> str:
    """How long a text may be, as a regular expression; the tag's line feed counts."""
    longest = schema.get("maxLength") if isinstance(schema, Mapping) else None
    if isinstance(longest, int) and 0 <= longest <= _LONGEST_COUNTED:
        return f"{{0,{longest + 1}}}"
    return "*"


def _value_rules(part: str, schema: Any, tool: ToolDefinition) -> tuple[str, list[str]]:
    """What a value is, its closing tag included, and the rules which that needs."""
    close = quoted("\n" + END_OF_PARAMETER)
    choices = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(choices, list) and choices and is_text(schema):
        return f"({' | '.join(map(quoted, choices))}) {close}", []
    rule = f"{part}_value"
    if is_text(schema):  # up to the first closing tag
        return rule, [f"{rule}[suffix={quoted(END_OF_PARAMETER)}]: /(?s:.{_length(schema)})/"]
    shared = {
        name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters
    }
    whole = {**shared, **schema, "x-guidance": SCHEMA_OPTIONS}
    return f"{rule} {close}", [f"{rule}: %json {json.dumps(whole)}"]
