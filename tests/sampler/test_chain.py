"""A chain's state, its inputs and its refusals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.core.errors import BackendError, UsageError
from powerserve.sampler import Constraint, Sampled, SamplerChain, SamplingParams, TokenMask

VOCAB_SIZE = 100
LOGITS = np.random.default_rng(0).normal(scale=2, size=VOCAB_SIZE).astype(np.float32)
BEST = int(LOGITS.argmax())
EVERYTHING: dict[str, Any] = {
    "top_k": 30,
    "typical_p": 0.99,
    "top_p": 0.98,
    "min_p": 0.001,
    "xtc_probability": 0.5,
    "repeat_penalty": 1.2,
    "logit_bias": {3: 1.5},
    "ignore_eos": True,
}


class FixedMask:
    """A grammar that allows the same tokens for ever, and counts what was accepted."""

    is_complete = False

    def __init__(self, mask: TokenMask | None) -> None:
        self.mask = mask
        self.accepted: list[int] = []

    def allowed(self) -> TokenMask | None:
        return self.mask

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def copy(self) -> FixedMask:
        twin = FixedMask(self.mask)
        twin.accepted = self.accepted.copy()
        return twin


def chain_for(
    *, eos_ids: tuple[int, ...] = (), constraint: Constraint | None = None, **changes: Any
) -> SamplerChain:
    return SamplerChain(
        SamplingParams(**changes),
        vocab_size=VOCAB_SIZE,
        eos_ids=eos_ids,
        newline_id=None,
        constraint=constraint,
    )


def generate(chain: SamplerChain, num_tokens: int) -> list[int]:
    tokens = []
    for _ in range(num_tokens):
        tokens.append(chain.sample(LOGITS).token_id)
        chain.accept(tokens[-1])
    return tokens


def test_the_same_seed_gives_the_same_tokens() -> None:
    first, again, other = (generate(chain_for(seed=s, **EVERYTHING), 200) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_no_seed_gives_other_tokens_each_time() -> None:
    assert generate(chain_for(), 100) != generate(chain_for(), 100)


@pytest.mark.parametrize("num_before", [0, 1, 63, 64, 100])
def test_a_copy_continues_alike_and_apart(num_before: int) -> None:
    chain = chain_for(seed=4, **EVERYTHING)
    generate(chain, num_before)
    undisturbed = chain_for(seed=4, **EVERYTHING)
    generate(undisturbed, num_before)

    twin = chain.copy()
    continuation = generate(twin, 100)
    assert generate(chain, 100) == continuation == generate(undisturbed, 100)


def test_the_logits_are_left_alone() -> None:
    logits = LOGITS.copy()
    logits.flags.writeable = False
    allowed = np.ones(VOCAB_SIZE, dtype=np.bool_)
    for changes in (EVERYTHING | {"ignore_eos": False}, {"top_k": 0, "top_p": 1}):
        for constraint in (None, FixedMask(allowed)):
            chain = chain_for(logprobs=5, constraint=constraint, **changes)
            chain.accept(BEST)
            chain.sample(logits)
    assert np.array_equal(logits, LOGITS)


@pytest.mark.parametrize("changes", [{"temperature": 0}, {"top_k": 1}])
def test_greedy_takes_the_highest_logit_and_of_equals_the_lowest_id(
    changes: dict[str, Any],
) -> None:
    logits = LOGITS.copy()
    logits[[70, 20, 90]] = 50
    chain = chain_for(**changes)
    assert chain.sample(logits) == Sampled(20)
    ids, probabilities = chain.distribution(logits)
    assert (ids.tolist(), probabilities.tolist()) == ([20], [1.0])


def test_top_k_beyond_the_vocabulary_keeps_everything() -> None:
    ids, _ = chain_for(top_k=10 * VOCAB_SIZE, top_p=1).distribution(LOGITS)
    assert len(ids) == VOCAB_SIZE


def test_a_vocabulary_of_one_token_works() -> None:
    chain = SamplerChain(
        SamplingParams(**EVERYTHING | {"logit_bias": {}}, logprobs=3),
        vocab_size=1,
        eos_ids=(),
        newline_id=None,
    )
    assert chain.sample(np.array([-3], dtype=np.float32)) == Sampled(0, 0.0, ((0, 0.0),))


def test_logit_bias_moves_and_bans_tokens() -> None:
    assert chain_for(temperature=0, logit_bias={5: 100}).sample(LOGITS).token_id == 5
    assert chain_for(temperature=0, logit_bias={BEST: -math.inf}).sample(LOGITS).token_id != BEST


def test_a_bias_on_an_unknown_token_is_refused() -> None:
    with pytest.raises(UsageError, match="token 100"):
        chain_for(logit_bias={VOCAB_SIZE: 1})


def test_ignore_eos_bans_every_end_token() -> None:
    logits = LOGITS.copy()
    logits[[7, 8]] = 50, 49
    chain = chain_for(temperature=0, ignore_eos=True, eos_ids=(7, 8), logit_bias={7: 100})
    assert chain.sample(logits).token_id == BEST


@pytest.mark.parametrize("changes", [{}, {"temperature": 0}, {"top_k": 0, "top_p": 1}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_reported(changes: dict[str, Any], bad: float) -> None:
    logits = LOGITS.copy()
    logits[17] = bad
    with pytest.raises(BackendError, match="not finite"):
        chain_for(**changes).sample(logits)


def test_logits_of_another_size_are_reported() -> None:
    with pytest.raises(BackendError, match="100 tokens"):
        chain_for().sample(LOGITS[:-1])


def packed(allowed: np.ndarray) -> np.ndarray:
    """Pack flags [n] into uint32 words, lowest bit first, as llguidance does."""
    words = [0] * math.ceil(len(allowed) / 32)
    for token_id in np.flatnonzero(allowed).tolist():
        words[token_id // 32] |= 1 << (token_id % 32)
    return np.array(words, dtype=np.uint32)


@given(allowed=st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=1))
def test_only_allowed_tokens_are_drawn(allowed: set[int]) -> None:
    flags = np.zeros(VOCAB_SIZE, dtype=np.bool_)
    flags[list(allowed)] = True
    words = packed(flags)
    for mask in (flags, words, words.view(np.int32)):
        chain = chain_for(top_k=0, top_p=1, constraint=FixedMask(mask))
        ids, probabilities = chain.distribution(LOGITS)
        assert set(ids[probabilities > 0].tolist()) == allowed
        assert chain.sample(LOGITS).token_id in allowed


def test_a_constraint_that_allows_everything_changes_nothing() -> None:
    free = generate(chain_for(seed=5), 50)
    assert generate(chain_for(seed=5, constraint=FixedMask(None)), 50) == free


def test_the_constraint_hears_of_accepted_tokens_and_is_copied() -> None:
    constraint = FixedMask(None)
    chain = chain_for(constraint=constraint)
    chain.accept(4)
    chain.copy().accept(5)
    chain.sample(LOGITS)
    assert constraint.accepted == [4]


def test_a_constraint_needs_stop_tokens() -> None:
    with pytest.raises(UsageError, match="ignore_eos"):
        chain_for(ignore_eos=True, constraint=FixedMask(None))


def test_a_few_allowed_tokens_pass_every_filter() -> None:
    flags = np.zeros(VOCAB_SIZE, dtype=np.bool_)
    flags[[10, 20]] = True
    chain = chain_for(top_k=40, top_p=0.999, constraint=FixedMask(flags))
    assert chain.distribution(LOGITS)[0].size == 2


def test_tokens_beyond_a_short_mask_are_not_allowed() -> None:
    """Models pad their vocabulary beyond what tokenizer and grammar know."""
    flags = np.ones(10, dtype=np.bool_)
    logits = LOGITS.copy()
    logits[50] = 100
    chain = chain_for(temperature=0, constraint=FixedMask(flags))
    assert chain.sample(logits).token_id == int(logits[:10].argmax())


def test_nothing_left_to_choose_is_reported() -> None:
    flags = np.zeros(VOCAB_SIZE, dtype=np.bool_)
    flags[7] = True
    chain = chain_for(logit_bias={7: -math.inf}, constraint=FixedMask(flags))
    with pytest.raises(UsageError, match="no token to choose"):
        chain.sample(LOGITS)


def test_logprobs_are_those_of_the_raw_logits() -> None:
    chain = chain_for(logprobs=4, temperature=0.3, logit_bias={5: 100.0})
    sampled = chain.sample(LOGITS)
    exact = LOGITS.astype(np.float64)
    expected = exact - np.log(np.exp(exact).sum())
    top = np.argsort(-expected)[:4]
    assert sampled.token_id == 5
    assert sampled.logprob == pytest.approx(expected[5], abs=1e-5)
    assert [i for i, _ in sampled.top_logprobs] == top.tolist()
    assert [p for _, p in sampled.top_logprobs] == pytest.approx(expected[top], abs=1e-5)


def test_logprobs_are_given_only_on_request() -> None:
    assert chain_for().sample(LOGITS).logprob is None
    sampled = chain_for(logprobs=0).sample(LOGITS)
    assert sampled.logprob is not None
    assert sampled.top_logprobs == ()
