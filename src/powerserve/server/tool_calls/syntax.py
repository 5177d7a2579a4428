"""What a parser of calls looks for: plain data, a form of it for each family of models."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass


def long_call_id() -> str:
    """An id as OpenAI's are."""
    return f"call_{secrets.token_hex(12)}"


@dataclass(frozen=True, slots=True)
class NamedHead:
    """What stands before an object of arguments where the name is not inside an object.

    Attributes:
        whole: matches all of it, up to the object; its first group is the name.
        beginning: matches, as a whole, everything that may yet become that.
    """

    whole: re.Pattern[str]
    beginning: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """Where calls are in a text, and what is between them.

    A call is a JSON object with name and arguments or, with `named_head`, a name and an object of
    arguments as well. A bare object at the very beginning of an answer is always tried.
    """

    openers: tuple[str, ...] = ()  # tags that a call may follow
    closers: tuple[str, ...] = ()  # tags that may follow a call
    max_closers: int = 1  # of them, after each call
    inner_tags: tuple[str, ...] = ()  # tags inside a call
    separators: str = ""  # what stands between calls, besides white space
    brackets: str = ""  # what may stand between an opener and a call, besides white space
    named_head: NamedHead | None = None
    new_call_id: Callable[[], str] = long_call_id
