"""How a family of models writes the calls of tools."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from powerserve.core.errors import UsageError
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.server.content import ContentParser
from powerserve.server.tool_calls.definitions import ToolDefinition

MAX_FORCED_CALLS = 16  # a small model may not find the end by itself

# Keywords that name properties elsewhere than in `properties`.
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "propertyNames"}


@dataclass(frozen=True, slots=True)
class ToolCallFormat(ABC):
    """How calls are read, and what a model is made to write where it has to call."""

    name: str
    before_calls: str = ""
    between_calls: str = "\n"
    after_calls: str = ""

    @property
    @abstractmethod
    def markup(self) -> tuple[str, ...]:
        """Spellings that have to reach the parser even where they are control tokens."""

    @property
    @abstractmethod
    def begins_as_json(self) -> bool:
        """Whether a call that is written looks like an answer in JSON."""

    @abstractmethod
    def parser(self, tools: Sequence[ToolDefinition]) -> ContentParser:
        """A parser for one answer."""

    @abstractmethod
    def call_rules(self, rule: str, tool: ToolDefinition) -> list[str]:
        """Lark rules, of which the first is `rule`, a call of this tool."""

    def forced_calls(
        self,
        tools: Sequence[ToolDefinition],
        *,
        parallel: bool = False,
        otherwise: Grammar | None = None,
    ) -> Grammar:
        """The grammar of an answer that is one call of one of `tools`, or several if `parallel`.

        Small models that may call several times often do not know when to stop. With `otherwise`,
        an answer of that form, which has to be JSON, is possible as well. Raises UsageError if the
        schemas are too long, for another form, and where calls look like answers.
        """
        more = f" ({quoted(self.between_calls)} call){{0,{MAX_FORCED_CALLS - 1}}}"
        start = f"{quoted(self.before_calls)} call{more if parallel else ''}"
        rules = [
            f"start: {start} {quoted(self.after_calls)}",
            "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        ]
        for index, tool in enumerate(tools):
            rules += self.call_rules(f"call_{index}", tool)
        if otherwise is not None:
            self._check_distinct()
            rules[0] += " | answer"
            rules.append(f"answer: %json {_answer_schema(otherwise)}")
        return Grammar(GrammarKind.LARK, "\n".join(rules))

    def _check_distinct(self) -> None:
        if self.begins_as_json:
            raise UsageError(
                "this model writes calls of tools as bare JSON, so tools and a form of the answer "
                "exclude each other; give one of them"
            )


def quoted(text: str) -> str:
    """A text as Lark writes it."""
    return json.dumps(text, ensure_ascii=False)


def arguments_schema(tool: ToolDefinition) -> str:
    """The tool's schema; each is a root of its own, so that its references stay right.

    Keywords that llguidance does not know are passed over: a tool checks its arguments itself, and
    definitions made by programs are full of formats such as "password". Arguments that the schema
    does not name are excluded unless it says otherwise, as small models invent some.
    """
    schema: dict[str, Any] = {"type": "object"}
    if "properties" in tool.parameters and not _COMPOSED & tool.parameters.keys():
        schema["additionalProperties"] = False
    return json.dumps(schema | dict(tool.parameters) | {"x-guidance": SCHEMA_OPTIONS})


SCHEMA_OPTIONS = {"whitespace_pattern": "[ ]", "lenient": True}


def _answer_schema(form: Grammar) -> str:
    from powerserve.sampler.grammar_probe import WHITESPACE

    if form.kind not in (GrammarKind.JSON_OBJECT, GrammarKind.JSON_SCHEMA):
        raise UsageError(
            f"tools and a {form.name} exclude each other; give one of them, or a JSON schema"
        )
    try:
        schema = json.loads(form.text or '{"type": "object"}')
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError("the JSON schema cannot be used: it has to be a JSON object")
    options = {"whitespace_pattern": WHITESPACE} | schema.get("x-guidance", {})
    return json.dumps(schema | {"x-guidance": options})
