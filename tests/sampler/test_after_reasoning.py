"""Grammars that hold for the answer, but not for the reasoning before it."""

from __future__ import annotations

import numpy as np
import pytest

from powerserve.sampler import Grammar, GrammarKind
from powerserve.sampler.after_reasoning import AfterReasoning
from powerserve.sampler.grammar_compiler import GrammarCompiler
from powerserve.tokenizer.tokenizer import Tokenizer
from powerserve.tokenizer.vocabulary import TokenType
from small_tokenizers import byte_pair_metadata


def thinking_tokenizer() -> Tokenizer:
    metadata = byte_pair_metadata()
    metadata["tokenizer.ggml.tokens"] += ["<think>", "</think>"]
    types = metadata["tokenizer.ggml.token_type"]
    metadata["tokenizer.ggml.token_type"] = np.append(types, [TokenType.USER_DEFINED] * 2)
    return Tokenizer.from_metadata(metadata)


TOKENIZER = thinking_tokenizer()
OPENING, CLOSING = (TOKENIZER.encode_inner(tag)[0] for tag in ("<think>", "</think>"))
ANSWER = GrammarCompiler(TOKENIZER).compile(Grammar(GrammarKind.REGEX, "[0-9]{2}"))


def constraint(*, starts_inside: bool) -> AfterReasoning:
    return AfterReasoning(
        ANSWER.copy(), opening_id=OPENING, closing_id=CLOSING, starts_inside=starts_inside
    )


def allowed_texts(state: AfterReasoning) -> set[str] | None:
    mask = state.allowed()
    if mask is None:
        return None
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return {TOKENIZER.token_text(token_id) for token_id in np.flatnonzero(bits)}


DIGITS = set("0123456789") | {"12"}


@pytest.mark.parametrize("starts_inside", [True, False])
def test_the_grammar_holds_after_the_closing_tag(starts_inside: bool) -> None:
    state = constraint(starts_inside=starts_inside)
    if not starts_inside:
        state.accept(OPENING)
    for token_id in (*TOKENIZER.encode_inner("what is 3 and 4?"), OPENING):
        assert allowed_texts(state) is None
        state.accept(token_id)
    assert not state.is_complete
    state.accept(CLOSING)
    assert allowed_texts(state) == DIGITS
    for token_id in TOKENIZER.encode_inner("34"):
        state.accept(token_id)
    assert state.is_complete


def test_a_text_that_does_not_begin_with_reasoning_is_the_answer() -> None:
    state = constraint(starts_inside=False)
    assert allowed_texts(state) == DIGITS | {"<think>"}
    state.accept(TOKENIZER.encode_inner("3")[0])
    assert allowed_texts(state) == set("0123456789")  # and no more thinking


def test_copies_go_their_own_ways() -> None:
    trunk = constraint(starts_inside=True)
    branch = trunk.copy()
    branch.accept(CLOSING)
    branch.accept(TOKENIZER.encode_inner("3")[0])
    assert allowed_texts(trunk) is None
    trunk.accept(CLOSING)
    assert allowed_texts(trunk) == DIGITS
