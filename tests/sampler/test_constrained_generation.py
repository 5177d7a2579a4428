"""Structured output for real: SmolLM2's answers are read back by msgspec, which checks types."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest

from powerserve import LLM, Completion, Grammar, LoadOptions, SamplingParams
from powerserve.core.errors import UsageError
from powerserve.sampler.grammar import GrammarKind
from powerserve.speculative.options import SpeculationMode, SpeculationOptions

MESSAGES = [{"role": "user", "content": "Invent a person and describe them as JSON."}]
GREEDY = SamplingParams(temperature=0, max_tokens=120)


class Address(msgspec.Struct, forbid_unknown_fields=True):
    street: Annotated[str, msgspec.Meta(max_length=20)]
    number: Annotated[int, msgspec.Meta(ge=1, le=999)]


class Person(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=2, max_length=12)]
    age: Annotated[int, msgspec.Meta(ge=0, le=120)]
    role: Literal["cook", "pilot", "nurse"]
    tags: Annotated[list[Annotated[str, msgspec.Meta(max_length=8)]], msgspec.Meta(max_length=2)]
    address: Address | None


PERSON = Grammar.from_schema(msgspec.json.schema(Person))  # with $defs, $ref and anyOf


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, LoadOptions(context_size=512)) as loaded:
        yield loaded


SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 2},
    {"temperature": 1.0, "repeat_penalty": 1.8, "presence_penalty": 1.0, "seed": 3},
    {"temperature": 0, "frequency_penalty": 2.0, "penalty_last_n": -1},
    {"temperature": 1.0, "xtc_probability": 0.5, "min_p": 0.05, "seed": 4},
]


@pytest.mark.parametrize("settings", SAMPLED, ids=str)
def test_answers_fit_the_schema(llm: LLM, settings: dict[str, Any]) -> None:
    completion = llm.chat(MESSAGES, SamplingParams(max_tokens=200, **settings), grammar=PERSON)
    assert completion.finish_reason == "stop"
    person = msgspec.json.decode(completion.text, type=Person)
    assert person.role in ("cook", "pilot", "nurse")


def test_any_object_is_json(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Three colours with their RGB values, as JSON."}]
    completion = llm.chat(messages, GREEDY, grammar=Grammar(GrammarKind.JSON_OBJECT))
    if completion.finish_reason == "stop":
        assert isinstance(msgspec.json.decode(completion.text), dict)
    else:  # it never came to an end, but it was on the way
        assert completion.text.startswith("{")


def test_a_regular_expression_is_matched_as_a_whole(llm: LLM) -> None:
    pattern = r"In the year (1[0-9]{3}|20[0-2][0-9])\."
    grammar = Grammar(GrammarKind.REGEX, pattern)
    completion = llm.chat([{"role": "user", "content": "When?"}], GREEDY, grammar=grammar)
    assert re.fullmatch(pattern, completion.text)
    assert completion.finish_reason == "stop"


def test_a_grammar_that_forbids_nothing_changes_nothing(smollm2: Path) -> None:
    anything = Grammar(GrammarKind.REGEX, r"(?s).*")
    params = SamplingParams(temperature=0.7, seed=9, max_tokens=16)
    with LLM(smollm2, LoadOptions(context_size=256, deterministic=True)) as repeatable:
        texts = [repeatable.chat(MESSAGES, params, grammar=each).text for each in (None, anything)]
    assert texts[0] == texts[1]


def test_one_batch_holds_answers_with_and_without_grammars(llm: LLM) -> None:
    digits = llm.start(
        "Numbers:", GREEDY.replace(max_tokens=12), Grammar.from_text("start: /[0-9 ]+/")
    )
    free = llm.start("The capital of France is", GREEDY.replace(max_tokens=12))
    texts = ["".join(piece.text for piece in llm.pieces(each)) for each in (digits, free)]
    assert re.fullmatch("[0-9 ]+", texts[0])
    assert texts[1].startswith(" Paris")


def test_streams_follow_the_grammar_too(llm: LLM) -> None:
    grammar = Grammar(GrammarKind.REGEX, "(yes|no)")
    assert "".join(llm.stream_chat(MESSAGES, GREEDY, grammar=grammar)) in ("yes", "no")
    assert "".join(llm.stream("Is it?", GREEDY, grammar=grammar)) in ("yes", "no")


def test_speculation_changes_nothing_about_structured_output(smollm2: Path) -> None:
    """Its candidates come from repetitions, which know nothing of the grammar.

    In float32, where the size of a step does not decide between nearly equal tokens.
    """
    items = {"type": "array", "items": {"$ref": "#/$defs/Address"}, "minItems": 2, "maxItems": 2}
    schema = msgspec.json.schema(Person)
    grammar = Grammar.from_schema({"$defs": schema["$defs"], **items})

    def answer(mode: SpeculationMode) -> Completion:
        speculation = SpeculationOptions(mode=mode)
        options = LoadOptions(backend="reference", context_size=512, speculation=speculation)
        with LLM(smollm2, options) as llm:
            return llm.chat(MESSAGES, GREEDY, grammar=grammar)

    plain, guessed = answer(SpeculationMode.OFF), answer(SpeculationMode.SUFFIX)
    assert guessed.speculation is not None and guessed.speculation.num_accepted_tokens > 0
    assert len(msgspec.json.decode(guessed.text, type=list[Address])) == 2
    assert guessed.text == plain.text


def test_a_grammar_that_fails_on_the_way_ends_only_its_own_answer(llm: LLM) -> None:
    explosion = 'a: b{100000}\nb: c{100000}\nc: "x"{100000}'
    exploding = Grammar.from_text(f'start: ("go" | "to") a\n{explosion}')
    broken = llm.stream("Where?", GREEDY, grammar=exploding)
    sound = llm.stream("The capital of France is", GREEDY.replace(max_tokens=8))
    with pytest.raises(UsageError, match="cannot be followed"):
        list(broken)
    assert "".join(sound).startswith(" Paris")


def test_a_bad_grammar_is_refused_before_anything_starts(llm: LLM) -> None:
    with pytest.raises(UsageError, match="JSON schema"):
        llm.generate("x", GREEDY, grammar=Grammar.from_schema({"type": "nonsense"}))
    with pytest.raises(UsageError, match="ignore_eos"):
        llm.generate("x", GREEDY, grammar=PERSON, ignore_eos=True)
    assert not llm.loaded.engine.has_work
