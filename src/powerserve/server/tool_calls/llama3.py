"""`{"name": …, "parameters": {…}}` as the whole answer: Llama 3.1, 3.2 and 3.3.

Source: https://github.com/meta-llama/llama-models, “prompt_format.md” of these models. Several
calls come one after the other or with semicolons between them. Where the system prompt names an
`ipython` environment, `<|python_tag|>`, a control token, may come first.
"""

from __future__ import annotations

from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.server.tool_calls.syntax import CallSyntax

LLAMA3 = JsonCallFormat(
    "llama3",
    syntax=CallSyntax(openers=("<|python_tag|>",), separators=";"),
    before_arguments='{"name": "NAME", "parameters": ',
    between_calls="; ",
)
