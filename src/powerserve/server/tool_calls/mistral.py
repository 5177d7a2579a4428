"""`[TOOL_CALLS]` and a list, or names and arguments: Mistral, Mixtral, Ministral, Devstral.

Source: the chat templates of these models, and https://docs.mistral.ai and mistral-common, whose
tokenizers write, by version:

    v3, v7     [TOOL_CALLS] [{"name": …, "arguments": {…}}, …]
    v11        [TOOL_CALLS]name[CALL_ID]id[ARGS]{…}
    v13        [TOOL_CALLS]name[ARGS]{…}

The words in brackets are control tokens. The templates take ids of nine letters and digits only.
"""

from __future__ import annotations

import re
import secrets
import string

from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.server.tool_calls.syntax import CallSyntax, NamedHead

_ID_CHARACTERS = string.ascii_letters + string.digits
_HEAD = NamedHead(
    whole=re.compile(r'([\w.-]+)\s*(?:\[CALL_ID\]\s*\w*\s*)?(?:\[ARGS\]\s*)?(?=\{\s*["}])'),
    beginning=re.compile(r"[\w.-]*\s*(?:\[\w*\]?\s*\w*\s*){0,2}(?:\{\s*)?"),
)


def short_call_id() -> str:
    """An id of nine letters and digits."""
    return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))


_SYNTAX = CallSyntax(
    openers=("[TOOL_CALLS]",),
    closers=("]",),
    inner_tags=("[CALL_ID]", "[ARGS]"),
    separators=",",
    brackets="[",
    named_head=_HEAD,
    new_call_id=short_call_id,
)

MISTRAL = JsonCallFormat(
    "mistral",
    before_calls="[TOOL_CALLS] [",
    between_calls=", ",
    after_calls="]",
    syntax=_SYNTAX,
)
MISTRAL_NAMED = JsonCallFormat(
    "mistral-named",
    between_calls="",
    syntax=_SYNTAX,
    before_arguments="[TOOL_CALLS]NAME[ARGS]",
    after_arguments="",
)
