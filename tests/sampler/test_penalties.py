"""Penalties see the last tokens, and only those."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from naive_sampler import penalise
from powerserve.sampler import SamplerChain, SamplingParams
from powerserve.sampler.penalties import PenaltyWindow

VOCAB_SIZE = 6
NEWLINE = 2
LOGITS = np.array([1.0, -2.0, 0.5, 3.0, 0.0, -np.inf], dtype=np.float32)

token_lists = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)


def chain_for(params: SamplingParams, prompt: list[int]) -> SamplerChain:
    return SamplerChain(
        params, vocab_size=VOCAB_SIZE, eos_ids=(), newline_id=NEWLINE, prompt=prompt
    )


def logits_behind(chain: SamplerChain) -> np.ndarray:
    """Recover the adjusted logits, up to a constant, from the distribution."""
    ids, probabilities = chain.distribution(LOGITS)
    adjusted = np.full(VOCAB_SIZE, -np.inf)
    with np.errstate(divide="ignore"):
        adjusted[ids] = np.log(probabilities)
    return adjusted - adjusted.max()


@given(
    prompt=token_lists,
    generated=token_lists,
    last_n=st.integers(-1, 10),
    repeat=st.floats(0.5, 3),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    penalize_nl=st.booleans(),
)
def test_equal_the_formulas_over_the_window(
    prompt: list[int],
    generated: list[int],
    last_n: int,
    repeat: float,
    frequency: float,
    presence: float,
    penalize_nl: bool,
) -> None:
    params = SamplingParams(
        temperature=1,
        top_k=0,
        top_p=1,
        penalty_last_n=last_n,
        repeat_penalty=repeat,
        frequency_penalty=frequency,
        presence_penalty=presence,
        penalize_nl=penalize_nl,
    )
    chain = chain_for(params, prompt)
    for token_id in generated:
        chain.accept(token_id)
    expected = np.array(penalise(LOGITS.tolist(), prompt + generated, params, NEWLINE))
    assert logits_behind(chain) == pytest.approx(expected - expected.max(), abs=1e-4)


def test_any_token_is_penalised_not_only_token_zero() -> None:
    """The original looked at the wrong end of its history and only ever saw token 0."""
    chain = chain_for(SamplingParams(temperature=0, repeat_penalty=10), prompt=[])
    assert chain.sample(LOGITS).token_id == 3
    chain.accept(3)
    assert chain.sample(LOGITS).token_id == 0


def test_a_token_that_leaves_the_window_is_free_again() -> None:
    params = SamplingParams(temperature=0, presence_penalty=10, penalty_last_n=2)
    chain = chain_for(params, prompt=[3])
    chosen = []
    for token_id in (1, 1, 1):
        chosen.append(chain.sample(LOGITS).token_id)
        chain.accept(token_id)
    assert chosen == [0, 0, 3]


def test_last_n_zero_switches_the_penalties_off() -> None:
    params = SamplingParams(temperature=0, presence_penalty=10, penalty_last_n=0)
    assert chain_for(params, prompt=[3]).sample(LOGITS).token_id == 3


def test_the_newline_is_penalised_only_on_request() -> None:
    logits = np.array([0, 0, 1, 0.5, 0, 0], dtype=np.float32)
    params = SamplingParams(temperature=0, presence_penalty=10)
    assert chain_for(params, prompt=[NEWLINE]).sample(logits).token_id == NEWLINE
    strict = params.replace(penalize_nl=True)
    assert chain_for(strict, prompt=[NEWLINE]).sample(logits).token_id == 3


@given(tokens=token_lists, last_n=st.integers(1, 12))
def test_the_window_counts_what_it_holds(tokens: list[int], last_n: int) -> None:
    window = PenaltyWindow(last_n)
    for token_id in tokens:
        window.push(token_id)
    ids, counts = window.counts(without=None)
    recent = tokens[-last_n:]
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {
        token_id: recent.count(token_id) for token_id in recent
    }


def test_a_prompt_may_be_an_array_of_token_ids() -> None:
    params = SamplingParams(temperature=0, presence_penalty=math.e)
    chain = SamplerChain(
        params,
        vocab_size=VOCAB_SIZE,
        eos_ids=(),
        newline_id=None,
        prompt=np.array([3], dtype=np.int32),  # type: ignore[arg-type]
    )
    chain.accept(3)
    ids, counts = chain._window.counts(without=None)  # type: ignore[union-attr]
    assert (ids.tolist(), counts.tolist()) == ([3], [2])
