"""Finding the largest logits without sorting the vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.sampler.candidates import Candidates, largest


def sorted_positions(values: list[float], count: int) -> list[int]:
    """What `largest` promises, by a full sort."""
    possible = [i for i, value in enumerate(values) if value > -math.inf]
    return sorted(possible, key=lambda i: (-values[i], i))[:count]


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 5000),
    count=st.integers(1, 300),
    num_distinct=st.sampled_from([1, 2, 5, 100, 10**6]),
    num_impossible=st.integers(0, 5000),
)
def test_equals_a_full_sort(
    seed: int, size: int, count: int, num_distinct: int, num_impossible: int
) -> None:
    rng = np.random.default_rng(seed)
    values = ((rng.integers(0, num_distinct, size) - num_distinct / 2) / 8).astype(np.float32)
    values[rng.integers(0, size, num_impossible)] = -np.inf
    assert largest(values, count).tolist() == sorted_positions(values.tolist(), count)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_orders_all_floats_including_zeros_of_both_signs(values: list[float]) -> None:
    found = largest(np.array(values, dtype=np.float32), len(values))
    assert found.tolist() == sorted_positions(values, len(values))


@pytest.mark.parametrize("place", [0, 1, 63, 64, 9_999, 49_151])
def test_finds_a_peak_wherever_it_is(place: int) -> None:
    logits = np.zeros(49_152, dtype=np.float32)
    logits[place] = 1
    assert largest(logits, 40)[0] == place


def test_the_best_of_a_descending_list_are_its_head() -> None:
    best = Candidates.whole_vocabulary(np.array([1, 3, 2], dtype=np.float32)).best(2)
    assert best.ids.tolist() == [1, 2]
    assert best.best(1).ids.tolist() == [1]
    assert best.peak() == 3
