"""A grammar as a request states it: plain data, before anything is compiled."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from powerserve.core.errors import UsageError

MAX_TEXT_LENGTH = 256 << 10  # characters; the longest real schemas have a fifth of that

_GBNF_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)


class GrammarKind(StrEnum):
    """The languages that grammars are written in."""

    JSON_OBJECT = "json_object"  # any JSON object; there is no text
    JSON_SCHEMA = "json_schema"  # Draft 2020-12
    REGEX = "regex"  # the whole answer matches it; the syntax of Rust's regex crate
    LARK = "lark"  # llguidance's dialect
    GBNF = "gbnf"  # llama.cpp's


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to look like. Raises UsageError for a text that is empty or far too long.

    Whether the text makes sense is found out by `GrammarCompiler.compile`.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        if self.kind is not GrammarKind.JSON_OBJECT and not self.text.strip():
            raise UsageError(f"the {self.name} is empty")
        if len(self.text) > MAX_TEXT_LENGTH:
            raise UsageError(
                f"the {self.name} has {len(self.text):,} characters; "
                f"at most {MAX_TEXT_LENGTH:,} are allowed"
            )

    @classmethod
    def from_schema(cls, schema: Mapping[str, Any] | str) -> Self:
        """A JSON schema, as an object or as its JSON text."""
        if isinstance(schema, str):
            return cls(GrammarKind.JSON_SCHEMA, schema)
        try:
            return cls(GrammarKind.JSON_SCHEMA, json.dumps(schema, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"the JSON schema is not JSON: {error}") from None

    @classmethod
    def from_text(cls, text: str) -> Self:
        """A Lark grammar, or a GBNF grammar if its rules are written with “::=”."""
        is_gbnf = _GBNF_RULE.search(text) is not None
        return cls(GrammarKind.GBNF if is_gbnf else GrammarKind.LARK, text)

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        names = {
            GrammarKind.JSON_SCHEMA: "JSON schema",
            GrammarKind.REGEX: "regular expression",
            GrammarKind.GBNF: "GBNF grammar",
        }
        return names.get(self.kind, "grammar")
