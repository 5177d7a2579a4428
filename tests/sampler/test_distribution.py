"""The chain against a naive one, in probabilities and in tokens drawn."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from naive_sampler import NearTieError, distribution
from powerserve.sampler import DEFAULT_STAGES, SamplerChain, SamplingParams

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}

# Multiples of 1/4, so that ties are frequent.
logit_lists = st.lists(
    st.one_of(st.integers(-40, 40).map(lambda n: n / 4), st.just(-math.inf)),
    min_size=1,
    max_size=40,
).filter(lambda logits: max(logits) > -math.inf)

param_sets = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0.05, 5),
        "top_k": st.integers(0, 50),
        "top_p": st.floats(0.01, 1),
        "min_p": st.floats(0.001, 1),
        "typical_p": st.floats(0.01, 1),
        "xtc_threshold": st.floats(0.01, 0.6),
        "xtc_probability": st.sampled_from([0, 1]),
        "min_keep": st.integers(0, 5),
        "stages": st.permutations(DEFAULT_STAGES),
    },
)


def chain_for(params: SamplingParams, vocab_size: int) -> SamplerChain:
    return SamplerChain(params, vocab_size=vocab_size, eos_ids=(), newline_id=None)


@given(logits=logit_lists, changes=param_sets)
def test_any_chain_equals_the_naive_one(logits: list[float], changes: dict[str, Any]) -> None:
    params = SamplingParams(**(OFF | changes))
    try:
        expected = distribution(logits, params, rounding=1e-5)
    except NearTieError:
        assume(False)
    found = found_distribution(np.array(logits, dtype=np.float32), params)
    assert possible(found) == pytest.approx(possible(expected), rel=1e-4)


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 10.0])
@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 40},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.95},
        {"top_p": 0.999},
        {"typical_p": 0.3},
        {"typical_p": 0.9},
        {"min_p": 0.05},
        {"temperature": 0.8},
        {"xtc_probability": 1.0, "xtc_threshold": 0.02},
        {"top_k": 40, "top_p": 0.95, "temperature": 0.8},
        {"min_p": 0.9, "min_keep": 700},
    ],
)
def test_large_vocabularies_equal_the_naive_chain(spread: float, changes: dict[str, Any]) -> None:
    """Flat distributions need many candidates: the first guess at their number is too low."""
    logits = np.random.default_rng(7).normal(scale=spread, size=6_000).astype(np.float32)
    params = SamplingParams(**(OFF | changes))
    expected = distribution(logits.tolist(), params)
    found = found_distribution(logits, params)
    # Rounding may decide about a token or two at the edge, each of 1/6000 if all are alike.
    distance = sum(abs(expected.get(i, 0) - found.get(i, 0)) for i in expected | found) / 2
    assert distance < 5e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 4},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"typical_p": 0.7},
        {"xtc_probability": 1.0, "xtc_threshold": 0.1},
        {"top_k": 6, "top_p": 0.9, "temperature": 0.8},
        {"top_k": 6, "typical_p": 0.9, "min_p": 0.1, "temperature": 1.3},
    ],
)
def test_drawn_tokens_follow_the_distribution(changes: dict[str, Any]) -> None:
    logits = np.array([0.3, 2.1, -1.0, 1.4, 1.4, 0.0, -2.5, 1.7, -9.0], dtype=np.float32)
    params = SamplingParams(**(OFF | changes | {"seed": 11}))
    chain = chain_for(params, len(logits))
    draws = Counter(chain.sample(logits).token_id for _ in range(5_000))
    assert_plausible(draws, distribution(logits.tolist(), params))


def test_drawing_from_a_whole_vocabulary_follows_the_distribution() -> None:
    """Long lists are searched in two levels; the bins here cross their borders."""
    logits = np.random.default_rng(3).normal(scale=2, size=5_000).astype(np.float32)
    params = SamplingParams(**(OFF | {"seed": 12}))
    chain = chain_for(params, len(logits))
    draws = Counter(chain.sample(logits).token_id * 20 // 5_000 for _ in range(5_000))
    bins: dict[int, float] = dict.fromkeys(range(20), 0.0)
    for token_id, probability in distribution(logits.tolist(), params).items():
        bins[token_id * 20 // 5_000] += probability
    assert_plausible(draws, bins)


def found_distribution(logits: np.ndarray, params: SamplingParams) -> dict[int, float]:
    ids, probabilities = chain_for(params, len(logits)).distribution(logits)
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


def possible(probabilities: dict[int, float]) -> dict[int, float]:
    """Drop what float32 may or may not round to zero."""
    return {i: p for i, p in probabilities.items() if p > 1e-12}


def assert_plausible(draws: Counter[int], probabilities: dict[int, float]) -> None:
    """Chi-square test; a right sampler fails it for one seed in a million."""
    assert draws.keys() <= probabilities.keys()
    num_draws = draws.total()
    terms = [
        (draws[i] - num_draws * p) ** 2 / (num_draws * p) for i, p in probabilities.items() if p
    ]
    freedom = max(1, len(terms) - 1)
    # Wilson and Hilferty's approximation of the quantile; 4.75 sigmas are one in a million.
    spread = 2 / (9 * freedom)
    assert sum(terms) < freedom * (1 - spread + 4.75 * math.sqrt(spread)) ** 3


def test_xtc_strikes_as_often_as_asked() -> None:
    logits = np.array([3.0, 2.9, -5.0], dtype=np.float32)
    changes = {"xtc_probability": 0.25, "xtc_threshold": 0.2, "seed": 5}
    chain = chain_for(SamplingParams(**(OFF | changes)), 3)
    both_left = [len(chain.distribution(logits)[0]) == 3 for _ in range(4_000)]
    assert_plausible(Counter(both_left), {True: 0.75, False: 0.25})


def test_min_keep_does_not_count_impossible_tokens() -> None:
    logits = np.array([-np.inf, 0.0, 0.5], dtype=np.float32)
    changes = {"xtc_probability": 1, "min_keep": 2}
    ids, probabilities = chain_for(SamplingParams(**(OFF | changes)), 3).distribution(logits)
    assert ids[probabilities > 0].tolist() == [1, 2]


def test_top_p_zero_keeps_only_the_likeliest() -> None:
    logits = np.array([1, 3, 2], dtype=np.float32)
    for top_k in (0, 2):
        chain = chain_for(SamplingParams(top_p=0, top_k=top_k), 3)
        assert chain.sample(logits).token_id == 1


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 1e38, 1e300])
def test_extreme_temperatures_are_greedy_or_uniform(temperature: float) -> None:
    logits = np.array([-50, 30, 29.999, -np.inf], dtype=np.float32)
    chain = chain_for(SamplingParams(**(OFF | {"temperature": temperature})), 4)
    ids, probabilities = chain.distribution(logits)
    expected = [0, 1, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 1 / 3, 0]
    assert ids.tolist() == [0, 1, 2, 3]
    assert probabilities == pytest.approx(expected)
