"""What an answer shall look like: `response_format`, and grammars."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.server.errors import invalid


class JsonSchema(msgspec.Struct):
    """`response_format.json_schema`."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    strict: bool | None = None  # it always is


class ResponseFormat(msgspec.Struct):
    """`response_format`, or `text.format` of a response, where the schema lies beside the type.

    llama.cpp's server takes it there too, with `json_object`.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None
    name: str | None = None


class GrammarFields(msgspec.Struct, kw_only=True):
    """The ways to ask for a form; at most one of them may be used."""

    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None  # llama.cpp's
    grammar: str | None = None  # Lark, or llama.cpp's GBNF
    regex: str | None = None

    def chosen_grammar(self) -> Grammar | None:
        """What the answer has to obey. Raises ApiError or UsageError."""
        found = [
            grammar
            for grammar in (
                format_grammar(self.response_format),
                None if self.json_schema is None else Grammar.from_schema(self.json_schema),
                Grammar.from_text(self.grammar) if self.grammar else None,
                Grammar(GrammarKind.REGEX, self.regex) if self.regex else None,
            )
            if grammar is not None
        ]
        if len(found) > 1:
            raise invalid(
                "give one of response_format, json_schema, grammar and regex, not several",
                "response_format",
            )
        return found[0] if found else None


def format_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    """The grammar of a response format. Raises ApiError or UsageError."""
    if wanted is None or wanted.type == "text":
        return None
    schema = wanted.schema
    if wanted.json_schema is not None:
        schema = wanted.json_schema.schema
    if schema is not None:
        return Grammar.from_schema(schema)
    if wanted.type == "json_object":
        return Grammar(GrammarKind.JSON_OBJECT)
    raise invalid("the format json_schema needs a schema", "response_format.json_schema.schema")
