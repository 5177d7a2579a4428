"""Drawing an index with one uniform number."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.sampler.randomness import UniformStream, draw

FIRST = [0.6369616873214543, 0.2697867137638703]
SECOND_BLOCK = [0.8897387912781343, 0.5571380502062263]
JUST_BELOW_ONE = float(np.nextafter(1, 0))


@given(
    weights=st.lists(st.integers(0, 3), min_size=1, max_size=30).filter(any),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_inverts_the_cumulative_distribution(weights: list[int], uniform: float) -> None:
    target = uniform * sum(weights)
    expected = next(i for i, c in enumerate(itertools.accumulate(weights)) if c > target)
    assert draw(np.array(weights, dtype=np.float32), uniform) == expected


@pytest.mark.parametrize("size", [1_025, 3_000, 151_936])
def test_long_lists_are_inverted_alike(size: int) -> None:
    weights = np.random.default_rng(size).random(size).astype(np.float32)
    cumulative = np.cumsum(weights, dtype=np.float64)
    for uniform in np.random.default_rng(1).random(50):
        index = draw(weights, float(uniform))
        low = cumulative[index - 1] if index else 0.0
        slack = 1e-6 * cumulative[-1]  # segments are summed in float32
        assert low - slack <= uniform * cumulative[-1] <= cumulative[index] + slack


@pytest.mark.parametrize("uniform", [0.0, 0.5, JUST_BELOW_ONE])
@pytest.mark.parametrize("size", [10, 5_000])
def test_an_impossible_index_is_never_drawn(size: int, uniform: float) -> None:
    weights = np.zeros(size, dtype=np.float32)
    weights[size // 2] = 1e-30
    assert draw(weights, uniform) == size // 2


def test_a_seed_fixes_the_numbers_forever() -> None:
    """Users keep seeds; these numbers must survive every release."""
    stream = UniformStream(0)
    numbers = [stream.next() for _ in range(66)]
    assert numbers[:2] == FIRST
    assert numbers[64:] == SECOND_BLOCK
    assert all(0 <= number < 1 for number in numbers)
    assert len(set(numbers)) == len(numbers)
