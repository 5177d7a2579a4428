"""Compiled grammars: which tokens they allow, and what they cost at worst."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from powerserve.core.errors import UsageError
from powerserve.sampler import Grammar, GrammarKind
from powerserve.sampler.grammar import MAX_TEXT_LENGTH
from powerserve.sampler.grammar_compiler import GrammarCompiler, GrammarConstraint
from powerserve.tokenizer.tokenizer import Tokenizer
from powerserve.tokenizer.vocabulary import TokenType
from small_tokenizers import byte_pair_metadata, sentence_piece_metadata
from tiny_vocabulary import vocabulary

TOKENIZER = Tokenizer.from_metadata(byte_pair_metadata())
COMPILER = GrammarCompiler(TOKENIZER)
SENTENCE_PIECE = Tokenizer.from_metadata(sentence_piece_metadata())
OBJECT = Grammar(GrammarKind.JSON_OBJECT)


def regex(pattern: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, pattern)


def allowed_ids(constraint: GrammarConstraint) -> list[int]:
    bits = np.unpackbits(constraint.allowed().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def accept_text(constraint: GrammarConstraint, text: str) -> GrammarConstraint:
    """Feed the tokens of `text`, each of which must be allowed."""
    for token_id in TOKENIZER.encode_inner(text):
        assert token_id in allowed_ids(constraint), f"{TOKENIZER.token_text(token_id)} in {text}"
        constraint.accept(token_id)
    return constraint


def fits(grammar: Grammar, text: str) -> bool:
    """Whether the whole text is in the language: its tokens are allowed, and so is an end."""
    constraint = COMPILER.compile(grammar)
    for token_id in TOKENIZER.encode_inner(text):
        if token_id not in allowed_ids(constraint):
            return False
        constraint.accept(token_id)
    return TOKENIZER.stop_ids <= set(allowed_ids(constraint))


def next_tokens(language: Iterable[str], prefix: str) -> set[int]:
    """By brute force: the tokens that continue `prefix` towards a word of `language`."""
    rests = [word[len(prefix) :].encode() for word in language if word.startswith(prefix)]
    found = {
        token_id
        for token_id in range(TOKENIZER.vocab_size)
        if (piece := TOKENIZER.token_bytes(token_id))
        and any(rest.startswith(piece) for rest in rests)
    }
    return found | TOKENIZER.stop_ids if b"" in rests else found


@pytest.mark.parametrize(
    "words",
    [
        ("the end", "then", "there", "hello"),
        ("", "a", "aa", "aaa", "b"),
        ("in the world", "in the work", "on"),
        ("é", "è", "ê!", "日本", "日光"),
    ],
)
def test_masks_are_those_of_an_exhaustive_search(words: tuple[str, ...]) -> None:
    start = COMPILER.compile(regex("|".join(words)))
    for word in words:
        constraint, prefix = start.copy(), ""
        for character in word:
            expected = next_tokens(words, prefix)
            found = set(allowed_ids(constraint))
            # Where the grammar leaves no choice, llguidance asks for the usual token.
            assert found == expected or (len(found) == 1 and found < expected)
            pieces = TOKENIZER.encode_inner(character)
            if not found.issuperset(pieces[:1]):
                break  # this character has to come inside a longer token
            for token_id in pieces:
                constraint.accept(token_id)
            prefix += character


def test_every_stop_token_is_allowed_at_the_end_and_only_there() -> None:
    assert len(TOKENIZER.stop_ids) > 1
    constraint = COMPILER.compile(regex("ab|abc"))
    assert not TOKENIZER.stop_ids & set(allowed_ids(constraint))
    accept_text(constraint, "ab")
    assert TOKENIZER.stop_ids < set(allowed_ids(constraint)) and not constraint.is_complete
    accept_text(constraint, "c")
    assert set(allowed_ids(constraint)) == TOKENIZER.stop_ids and constraint.is_complete


def test_a_model_that_cannot_end_is_refused() -> None:
    endless = Tokenizer.from_metadata(
        byte_pair_metadata(tokens=list(vocabulary())[:256], token_type=None, eos_token_id=None,
                           bos_token_id=None, merges=[])
    )  # fmt: skip
    assert not endless.stop_ids
    with pytest.raises(UsageError, match="no token to end with"):
        GrammarCompiler(endless).compile(regex("a"))


@pytest.mark.parametrize("stop_id", sorted(TOKENIZER.stop_ids))
def test_a_stop_token_is_accepted(stop_id: int) -> None:
    constraint = accept_text(COMPILER.compile(OBJECT), "{}")
    constraint.accept(stop_id)
    assert constraint.is_complete


def test_copies_go_their_own_ways() -> None:
    trunk = accept_text(COMPILER.compile(OBJECT), '{"a": [1')
    here = allowed_ids(trunk)
    branch = trunk.copy()
    accept_text(branch, "]}")
    assert branch.is_complete and not trunk.is_complete
    assert allowed_ids(trunk) == here
    accept_text(trunk, ', "x"]}')


def test_a_forbidden_token_is_reported_when_the_next_is_asked_for() -> None:
    constraint = COMPILER.compile(regex("ab"))
    constraint.accept(TOKENIZER.encode_inner("c")[0])
    with pytest.raises(UsageError, match="cannot be followed"):
        constraint.allowed()
    assert not constraint.is_complete


def test_control_tokens_are_never_text_but_user_defined_ones_are() -> None:
    metadata = byte_pair_metadata()
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    texts += ["<tool_call>", "<secret>"]
    metadata["tokenizer.ggml.token_type"] = np.append(
        types, [TokenType.USER_DEFINED, TokenType.CONTROL]
    ).astype(np.int32)
    tokenizer = Tokenizer.from_metadata(metadata)
    anything = allowed_ids(GrammarCompiler(tokenizer).compile(regex("(?s).*")))
    tool_call, secret = tokenizer.token_id("<tool_call>"), tokenizer.token_id("<secret>")
    assert tool_call in anything and secret not in anything
    forced = GrammarCompiler(tokenizer).compile(regex("<tool_call>[0-9]"))
    assert allowed_ids(forced) == [tool_call]


def test_text_without_a_choice_is_spelled_right_by_sentencepiece() -> None:
    """Its encoder puts a space before a text, which inside of one would be wrong."""
    constraint = GrammarCompiler(SENTENCE_PIECE).compile(regex("abcd ab"))
    ids = []
    while not constraint.is_complete:
        ids.append(allowed_ids(constraint)[-1])
        constraint.accept(ids[-1])
    assert b"".join(map(SENTENCE_PIECE.token_bytes, ids)) == b"abcd ab"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1}', True),
        ('{ "a": 1 }', True),
        ('{\n    "a": 1\n}', True),
        ("{}", True),
        ("[1]", False),
        ('{"a":1', False),
        ('{"a":\n\n\n1}', False),  # a small model would go on like this for ever
    ],
)
def test_any_json_object(text: str, expected: bool) -> None:
    assert fits(OBJECT, text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"next": {"next": {}}}', True),
        ('{"next": 1}', False),
        ('{"other": 1}', False),
    ],
)
def test_a_schema_may_refer_to_itself(text: str, expected: bool) -> None:
    schema = {"properties": {"next": {"$ref": "#"}}, "type": "object"}
    assert fits(Grammar.from_schema(schema | {"additionalProperties": False}), text) is expected


GBNF = r"""
root  ::= greeting (", " name)* "!"   # a comment
greeting ::= "hello" | "hi"
name  ::= [a-z]+ ("-" [a-z]+)?
"""
LARK = r"""
start: greeting (", " NAME)* "!"
greeting: "hello" | "hi"
NAME: /[a-z]+(-[a-z]+)?/
"""


@pytest.mark.parametrize("source", [GBNF, LARK])
@pytest.mark.parametrize(
    ("text", "expected"),
    [("hello!", True), ("hi, ann, mary-lou!", True), ("hi", False), ("hi, Ann!", False)],
)
def test_gbnf_and_lark_are_told_apart_and_understood(
    source: str, text: str, expected: bool
) -> None:
    grammar = Grammar.from_text(source)
    assert grammar.kind == (GrammarKind.GBNF if source is GBNF else GrammarKind.LARK)
    assert fits(grammar, text) is expected


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (r'"\u00e9" [\u00e8-\u00EA]', "éè"),
        (r'"\u0022\U00000041\U0001F600"', '"A😀'),
        (r'"\x41" [\x42-\x44]', "AC"),
        (r'"\\u00e9"', r"\u00e9"),
        (r'"\"" [^\]"\\\n]* "]"', '"hi]'),
    ],
)
def test_gbnf_escapes_are_understood(rule: str, text: str) -> None:
    assert fits(Grammar(GrammarKind.GBNF, f"root ::= {rule}"), text)


def test_a_known_grammar_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = regex("known|to|the|compiler")
    COMPILER.compile(grammar)

    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", no_process)
    assert not COMPILER.compile(grammar).is_complete


def nested_arrays(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


def definitions(schemas: dict[str, Any], start: str) -> str:
    return json.dumps({"$defs": schemas, "$ref": f"#/$defs/{start}"})


def chain(rule: str, last: str, length: int) -> str:
    """Rules that lead to each other, `rule` being a format string of this one and the next."""
    return "\n".join([rule.format(i, i + 1) for i in range(length)] + [last.format(length)])


SCHEMA, LARK_KIND = GrammarKind.JSON_SCHEMA, GrammarKind.LARK
HOSTILE = {
    "patterns that all have to match": (
        SCHEMA,
        json.dumps({"allOf": [{"pattern": f".*a{i}.*", "type": "string"} for i in range(60)]}),
        "takes too long",
    ),
    "references in a chain": (
        SCHEMA,
        definitions(
            {f"d{i}": {"properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(3000)}
            | {"d3000": {}},
            "d0",
        ),
        "nests too deeply",
    ),
    "rules in a chain": (
        LARK_KIND,
        "start: r0\n" + chain("r{}: r{}", 'r{}: "a"', 9000),
        "nests too deeply",
    ),
    "nested schemas": (SCHEMA, nested_arrays(20_000), "recursion limit"),
    "nested groups": (GrammarKind.REGEX, "(" * 50_000 + "a" + ")" * 50_000, "invalid regex"),
    "nested GBNF groups": (GrammarKind.GBNF, "root ::= " + "(" * 9000 + ")" * 9000, "recursion"),
    "a reference to itself": (SCHEMA, '{"$ref": "#"}', "no text satisfies it"),
    "references in a circle": (
        SCHEMA,
        definitions({"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "a"),
        "no text satisfies it",
    ),
    "alternatives of alternatives": (
        SCHEMA,
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}.{j}": {"const": j}}} for j in range(10)]}
                    for i in range(12)
                ]
            }
        ),
        "too large",
    ),
    "rules that double": (
        LARK_KIND,
        "start: R0\n" + chain("R{0}: R{1} R{1}", 'R{}: "a"', 60),
        "too big",
    ),
    "another server's file": (SCHEMA, '{"$ref": "http://example.com/x.json"}', "not present"),
    "a file": (SCHEMA, '{"$ref": "file:///etc/passwd"}', "not present"),
}


@pytest.mark.parametrize(("kind", "text", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_grammars_are_refused_with_a_sentence(
    kind: GrammarKind, text: str, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        COMPILER.compile(Grammar(kind, text))
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "grammar",
    [
        regex("((((a{1,1000}){1,1000}){1,1000}){1,1000}){1,1000}"),
        Grammar.from_schema({"type": "string", "minLength": 10**8}),
        Grammar.from_schema({"type": "array", "minItems": 10**8, "items": {"type": "string"}}),
        Grammar(LARK_KIND, 'start: a{1,1000}\na: b{1,1000} ";"\nb: "x"'),
    ],
    ids=["nested counts", "long string", "long array", "counted rules"],
)
def test_huge_repetitions_cost_nothing(grammar: Grammar) -> None:
    constraint = COMPILER.compile(grammar)
    assert allowed_ids(constraint) and not constraint.is_complete


def test_a_grammar_that_explodes_on_the_way_ends_with_an_error() -> None:
    explosion = 'a: b{100000}\nb: c{100000}\nc: "x"{100000}'
    constraint = COMPILER.compile(Grammar(LARK_KIND, f'start: ("go" | "to") a\n{explosion}'))
    accept_text(constraint, "go")
    with pytest.raises(UsageError, match="cannot be followed any further"):
        for _ in range(3):
            constraint.accept(allowed_ids(constraint)[0])


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar(SCHEMA, "{"), "EOF"),
        (Grammar(SCHEMA, "[1]"), "it has to be a JSON object"),
        (Grammar(SCHEMA, "true"), "it has to be a JSON object"),
        (Grammar(SCHEMA, '{"type": "integer", "minimum": 3, "maximum": 2}'), "minimum"),
        (Grammar(SCHEMA, '{"not": {"type": "string"}}'), '"not"'),
        (regex("(?=a)b"), "look-around"),
        (regex("[z-a]"), "invalid"),
        (Grammar(LARK_KIND, "start: missing"), "missing"),
        (Grammar(GrammarKind.GBNF, "root ::= missing"), "missing"),
        (Grammar(GrammarKind.GBNF, 'top ::= "a"'), "root"),
        (Grammar(LARK_KIND, "no grammar at all"), "grammar cannot be used"),
    ],
)
def test_what_is_wrong_with_a_grammar_is_said(grammar: Grammar, reason: str) -> None:
    with pytest.raises(UsageError, match=f"cannot be used: .*{re.escape(reason)}|{reason}"):
        COMPILER.compile(grammar)


def test_texts_that_cannot_be_grammars_are_refused_at_once() -> None:
    with pytest.raises(UsageError, match="the regular expression is empty"):
        Grammar(GrammarKind.REGEX, " \n")
    with pytest.raises(UsageError, match="at most"):
        Grammar(GrammarKind.LARK, "a" * (MAX_TEXT_LENGTH + 1))
    with pytest.raises(UsageError, match="not JSON"):
        Grammar.from_schema({"type": object()})
