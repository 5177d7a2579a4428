"""`<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes 2 Pro, Qwen 2.5, Qwen 3, SmolLM3.

Source: https://github.com/NousResearch/Hermes-Function-Calling, and Qwen's chat templates. In
Qwen's vocabularies the tags are single tokens, which count as text (user-defined, not control).
"""

from __future__ import annotations

from powerserve.server.tool_calls.base import ToolCallFormat

HERMES = ToolCallFormat(
    "hermes",
    # Qwen2.5-Coder takes the tag of the list of tools, or a code block, more often than the right
    # one.
    openers=("<tool_call>", "<tools>", "```json"),
    closers=("</tool_call>", "</tools>", "```"),
    before_call="<tool_call>\n",
    after_call="\n</tool_call>",
)
