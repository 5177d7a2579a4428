"""For models whose template says nothing of tools: they are told how to call, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.server.tool_calls.syntax import CallSyntax

GENERIC = JsonCallFormat(
    "generic",
    syntax=CallSyntax(openers=("<tool_call>", "```json"), closers=("</tool_call>", "```")),
)


def tool_instructions(tools: Sequence[ToolDefinition]) -> str:
    """A system message that describes the tools, for templates that do not."""
    functions = "\n".join(
        json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools
    )
    return (
        "You can call these functions, each described by a JSON schema of its parameters:\n"
        f"{functions}\n"
        'To call one, answer with nothing but {"name": <its name>, "arguments": <a JSON object>}. '
        "Answer in plain text if no function helps."
    )
