"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes 2 Pro, Qwen 2.5, Qwen 3, SmolLM3.

Source: https://github.com/NousResearch/Hermes-Function-Calling, and Qwen's chat templates. In
Qwen's vocabularies the tags are single tokens, which count as text (user-defined, not control).
"""

from __future__ import annotations

from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.server.tool_calls.syntax import CallSyntax

HERMES = JsonCallFormat(
    "hermes",
    syntax=CallSyntax(
        openers=("<tool_call>", "```json"),  # Qwen2.5-Coder writes code blocks, or no tags at all
        closers=("</tool_call>", "```"),
    ),
    before_arguments='<tool_call>\n{"name": "NAME", "arguments": ',
    after_arguments="}\n</tool_call>",
)
