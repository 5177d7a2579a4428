"""Calls of tools: finding them in answers, and making a model write them.

A format per family of models, in a file of its name. Most are data: their arguments are JSON
(`json_format.py`, read by `parser.py`); those of Qwen3-Coder are elements (`xml_parser.py`).
"""

from __future__ import annotations

from powerserve.server.tool_calls.base import ToolCallFormat
from powerserve.server.tool_calls.deepseek import DEEPSEEK, DEEPSEEK_V31
from powerserve.server.tool_calls.definitions import ToolDefinition, select_tool, tool_definitions
from powerserve.server.tool_calls.generic import GENERIC, tool_instructions
from powerserve.server.tool_calls.hermes import HERMES
from powerserve.server.tool_calls.llama3 import LLAMA3
from powerserve.server.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from powerserve.server.tool_calls.qwen3_coder import QWEN3_CODER

__all__ = [
    "DEEPSEEK",
    "DEEPSEEK_V31",
    "GENERIC",
    "HERMES",
    "LLAMA3",
    "MISTRAL",
    "MISTRAL_NAMED",
    "QWEN3_CODER",
    "ToolCallFormat",
    "ToolDefinition",
    "select_tool",
    "tool_call_format",
    "tool_definitions",
    "tool_instructions",
]

# What a template writes around the calls of earlier turns is what its model has learnt to write.
# The first of these that occurs decides.
_SIGNS = {
    "<parameter=": QWEN3_CODER,
    "<tool_call>": HERMES,
    "[ARGS]": MISTRAL_NAMED,
    "[TOOL_CALLS]": MISTRAL,
    "<｜tool▁sep｜>' + tool['function']['name']": DEEPSEEK,
    "<｜tool▁sep｜>": DEEPSEEK_V31,
    "<|python_tag|>": LLAMA3,
    "ipython": LLAMA3,  # the role of results, and the environment that Llama 3 is told of
}


def tool_call_format(template: str) -> ToolCallFormat:
    """The format of a model with this chat template (the source that renders tools)."""
    return next((known for sign, known in _SIGNS.items() if sign in template), GENERIC)
