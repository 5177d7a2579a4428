"""How a family of models writes the calls of tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from powerserve.core.errors import UsageError
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.parser import ToolCallParser

MAX_FORCED_CALLS = 16  # a small model may not find the end by itself

# Keywords that name properties elsewhere than in `properties`.
_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf", "patternProperties", "propertyNames"}


@dataclass(frozen=True, slots=True)
class ToolCallFormat:
    """A call is a JSON object with name and arguments, perhaps between tags.

    A bare object at the very beginning of an answer is taken for a call in every format, as small
    models forget the tags; so the tags may be none.
    """

    name: str
    openers: tuple[str, ...] = ()  # tags that a call may follow
    closers: tuple[str, ...] = ()  # tags that may follow a call
    separators: str = ""  # what stands between calls, besides white space
    # What a model is made to write where it has to call:
    before_call: str = ""
    arguments_key: str = "arguments"
    after_call: str = ""
    between_calls: str = "\n"

    @property
    def markup(self) -> tuple[str, ...]:
        """Spellings that have to reach the parser even where they are control tokens."""
        return self.openers + self.closers

    def parser(self, tools: Sequence[ToolDefinition]) -> ToolCallParser:
        """A parser for one answer."""
        return ToolCallParser(
            {tool.name for tool in tools}, self.openers, self.closers, self.separators
        )

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
        more = f"({_quoted(self.between_calls)} call){{0,{MAX_FORCED_CALLS - 1}}}"
        rules = [
            f"start: call {more}" if parallel else "start: call",
            "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
        ]
        for index, tool in enumerate(tools):
            rules += self._call_rules(index, tool)
        if otherwise is not None:
            self._check_distinct()
            rules[0] += " | answer"
            rules.append(f"answer: %json {_answer_schema(otherwise)}")
        return Grammar(GrammarKind.LARK, "\n".join(rules))

    def _check_distinct(self) -> None:
        if not self.before_call:
            raise UsageError(
                "this model writes calls of tools as bare JSON, so tools and a form of the answer "
                "exclude each other; give one of them"
            )

    def _call_rules(self, index: int, tool: ToolDefinition) -> list[str]:
        head = f'{self.before_call}{{"name": "{tool.name}", "{self.arguments_key}": '
        tail = f"}}{self.after_call}"
        return [
            f"call_{index}: {_quoted(head)} arguments_{index} {_quoted(tail)}",
            f"arguments_{index}: %json {_arguments_schema(tool)}",
        ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _arguments_schema(tool: ToolDefinition) -> str:
    """The tool's schema; each is a root of its own, so that its references stay right.

    Keywords that llguidance does not know are passed over: a tool checks its arguments itself, and
    definitions made by programs are full of formats such as "password". Arguments that the schema
    does not name are excluded unless it says otherwise, as small models invent some.
    """
    schema: dict[str, Any] = {"type": "object"}
    if "properties" in tool.parameters and not _COMPOSED & tool.parameters.keys():
        schema["additionalProperties"] = False
    options = {"whitespace_pattern": "[ ]", "lenient": True}
    return json.dumps(schema | dict(tool.parameters) | {"x-guidance": options})


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
