"""Calls of tools: finding them in answers, and making a model write them.

A format per family of models: data in `hermes.py`, `llama3.py` and `generic.py`, what all have in
common in `base.py` and `parser.py`.
"""

from __future__ import annotations

from powerserve.server.tool_calls.base import ToolCallFormat
from powerserve.server.tool_calls.definitions import ToolDefinition, select_tool, tool_definitions
from powerserve.server.tool_calls.generic import GENERIC, tool_instructions
from powerserve.server.tool_calls.hermes import HERMES
from powerserve.server.tool_calls.llama3 import LLAMA3
from powerserve.server.tool_calls.parser import ToolCallParser

__all__ = [
    "GENERIC",
    "HERMES",
    "LLAMA3",
    "ToolCallFormat",
    "ToolCallParser",
    "ToolDefinition",
    "select_tool",
    "tool_call_format",
    "tool_definitions",
    "tool_instructions",
]

# What a template writes around the calls of earlier turns is what its model has learnt to write.
_SIGNS = {
    "<tool_call>": HERMES,
    "<|python_tag|>": LLAMA3,
    "ipython": LLAMA3,  # the role of results, and the environment that Llama 3 is told of
}


def tool_call_format(template: str) -> ToolCallFormat:
    """The format of a model with this chat template (the source that renders tools)."""
    return next((known for sign, known in _SIGNS.items() if sign in template), GENERIC)
