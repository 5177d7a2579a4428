"""`<｜tool▁calls▁begin｜>` and what follows: DeepSeek V3, R1 and V3.1.

Source: the chat templates of these models. V3 and R1 write the kind of call, the name and a block
of JSON; V3.1 writes name and JSON alone:

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>name
    ```json
    {…}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>name<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>

The tags are control tokens.
"""

from __future__ import annotations

import re

from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.server.tool_calls.syntax import CallSyntax, NamedHead

_CALLS, _END_OF_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _END_OF_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEPARATOR = "<｜tool▁sep｜>"

_HEAD = NamedHead(
    whole=re.compile(
        rf"(?:{_CALL}\s*)?(?:function\s*{_SEPARATOR}\s*)?([\w.-]+)\s*(?:{_SEPARATOR}\s*)?"
        r'(?:```(?:json)?\s*)?(?=\{\s*["}])'
    ),
    beginning=re.compile(
        r"(?:<[^<>]*>?\s*)?[\w.-]*\s*(?:<[^<>]*>?\s*)?[\w.-]*\s*(?:`{1,3}\w*\s*)?(?:\{\s*)?"
    ),
)
_SYNTAX = CallSyntax(
    openers=(_CALLS, _CALL),
    closers=("```", _END_OF_CALL, _END_OF_CALLS),
    max_closers=3,
    inner_tags=(_SEPARATOR,),
    named_head=_HEAD,
)

DEEPSEEK = JsonCallFormat(
    "deepseek",
    before_calls=_CALLS,
    between_calls="\n",
    after_calls=_END_OF_CALLS,
    syntax=_SYNTAX,
    before_arguments=f"{_CALL}function{_SEPARATOR}NAME\n```json\n",
    after_arguments=f"\n```{_END_OF_CALL}",
)
DEEPSEEK_V31 = JsonCallFormat(
    "deepseek-v3.1",
    before_calls=_CALLS,
    between_calls="",
    after_calls=_END_OF_CALLS,
    syntax=_SYNTAX,
    before_arguments=f"{_CALL}NAME{_SEPARATOR}",
    after_arguments=_END_OF_CALL,
)
