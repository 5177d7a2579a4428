"""What a step costs, and how many candidates that makes worthwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.speculative.cost_model import (
    LONG_CONTEXT,
    SHORT_CONTEXT,
    SIZES,
    CostCurve,
    LiveCosts,
    best_plan,
    measure_compiled,
    measure_curve,
)
from powerserve.speculative.curve_store import CurveKey, CurveSource

FLAT = CostCurve((1, 32), (1.0, 1.0), 0.0)
LINEAR = CostCurve((1, 32), (1.0, 32.0), 0.0)


def timer(seconds: Callable[[int, int], float]) -> tuple[Callable[[int, int], float], list[int]]:
    """A stop-watch that invents times, and the sizes it was asked for."""
    asked: list[int] = []

    def time_step(num_tokens: int, num_cells: int) -> float:
        asked.append(num_tokens)
        return seconds(num_tokens, num_cells)

    return time_step, asked


def test_a_curve_is_exact_where_measured_and_straight_between() -> None:
    curve = CostCurve((1, 4, 8), (1.0, 2.0, 4.0), 0.0)
    assert [curve(n) for n in (1, 4, 8)] == [1.0, 2.0, 4.0]
    assert curve(6) == 3.0
    assert curve(12) == 6.0
    assert CostCurve((1, 2), (1.0, 1.5), 0.001)(2, SHORT_CONTEXT + 100) == pytest.approx(1.7)


def test_measuring_finds_the_curve_and_the_price_of_context() -> None:
    time_step, _ = timer(lambda n, cells: 0.001 * (1 + 0.25 * n) + 1e-6 * n * cells)
    curve = measure_curve(time_step, budget_s=100)
    assert curve.sizes == SIZES
    assert curve.seconds_per_cell == pytest.approx(1e-6)
    for size in SIZES:
        expected = 0.001 * (1 + 0.25 * size) + 1e-6 * size * SHORT_CONTEXT
        assert curve(size, SHORT_CONTEXT) == pytest.approx(expected)


def test_an_outlier_upwards_does_not_count() -> None:
    """A larger step that was faster shows that the smaller one can be, by padding."""
    time_step, _ = timer(lambda n, cells: 9.0 if n == 4 else 0.5 + n)
    curve = measure_curve(time_step, budget_s=1000)
    assert curve(4) == curve(6) == 6.5


def test_a_small_budget_measures_less() -> None:
    time_step, asked = timer(lambda n, cells: float(n))
    curve = measure_curve(time_step, budget_s=8.0)
    assert curve.sizes == (1, 2, 4)
    assert sum(asked) < 16
    assert measure_curve(time_step, budget_s=0.0).sizes == (1, 2)


def test_compiled_sizes_make_a_staircase() -> None:
    """Steps are padded to a compiled size, or take several runs."""
    time_step, asked = timer(lambda n, cells: {1: 1.0, 8: 1.2, 24: 2.0}[n])
    curve = measure_compiled(time_step, 0.0, (1, 8, 24))
    assert sorted(asked) == [1, 1, 1, 8, 24]  # no time to lose, but each once; twice in a context
    assert [curve(n) for n in (1, 2, 8, 9, 17, 24)] == [1.0, 1.2, 1.2, 2.0, 2.0, 2.0]
    assert [curve(n) for n in (25, 48)] == [3.0, 4.0]
    assert curve.tree_sizes == (1, 8, 24)


def test_trees_fill_the_compiled_sizes() -> None:
    time_step, _ = timer(lambda n, cells: {1: 1.0, 8: 1.2, 24: 2.0}[n])
    curve = measure_compiled(time_step, 0.0, (1, 8, 24))
    for chance, num_candidates in ((0.01, 0), (0.05, 7), (0.6, 23)):
        plan = best_plan(curve, [chance] * 30, sizes=curve.tree_sizes)
        assert plan.num_candidates == num_candidates
    assert best_plan(curve, [0.6] * 5, sizes=curve.tree_sizes).num_candidates == 5
    assert LiveCosts(curve).least_useful == pytest.approx(0.02)  # the first stair is a low one


@pytest.mark.parametrize("batch_sizes", [(1,), (128,), (4, 16)])
def test_any_compiled_sizes_make_a_curve(batch_sizes: tuple[int, ...]) -> None:
    time_step, _ = timer(lambda n, cells: 1.0 + n / 100)
    curve = measure_compiled(time_step, 0.0, batch_sizes)
    costs = LiveCosts(curve)
    costs.observe(1, 0, 2.0)
    assert 0 < costs(3) <= costs(130)
    assert best_plan(costs, [0.9] * 3, sizes=curve.tree_sizes).num_candidates in (0, 3)


def test_a_flat_curve_takes_every_candidate_and_a_steep_one_none() -> None:
    probabilities = [0.9, 0.5, 0.2, 0.1, 0.05, 0.01, 0.01]
    assert best_plan(FLAT, probabilities).num_candidates == 7
    assert best_plan(LINEAR, probabilities).num_candidates == 0
    assert best_plan(LINEAR, probabilities, forced=True).num_candidates == 1
    assert best_plan(FLAT, []).num_candidates == 0


def test_a_step_in_the_curve_is_taken_when_it_is_cheap() -> None:
    """As many tokens as fit into a tile cost the same, so all of them are taken, or none."""
    tiles = CostCurve((1, 2, 4, 6, 8), (1.0, 1.9, 1.9, 3.8, 3.8), 0.0)
    assert best_plan(tiles, [0.8, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1]).num_candidates == 3
    assert best_plan(tiles, [0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]).num_candidates == 0


@given(
    st.lists(st.floats(0, 1), max_size=40),
    st.lists(st.floats(0.1, 3), min_size=len(SIZES), max_size=len(SIZES)),
    st.integers(1, 6),
)
def test_no_other_measured_size_is_faster(
    unsorted: list[float], steps: list[float], num_sequences: int
) -> None:
    probabilities = sorted(unsorted, reverse=True)
    seconds = tuple(sum(steps[: i + 1]) for i in range(len(steps)))
    curve = CostCurve(SIZES, seconds, 0.0)

    def speed(count: int) -> float:
        return (num_sequences + sum(probabilities[:count])) / curve(num_sequences + count)

    plan = best_plan(curve, probabilities, num_sequences)
    assert plan.tokens_per_s == pytest.approx(speed(plan.num_candidates))
    sizes = [s - num_sequences for s in SIZES if 0 <= s - num_sequences <= len(probabilities)]
    assert plan.tokens_per_s >= max((speed(n) for n in sizes), default=0) * (1 - 1e-9)


def test_what_a_step_really_took_changes_the_expectation() -> None:
    costs = LiveCosts(CostCurve(SIZES, tuple(float(size) for size in SIZES), 0.0))
    for _ in range(50):
        costs.observe(4, SHORT_CONTEXT, 2.0)
    assert costs(4) == pytest.approx(2.0, rel=0.05)
    assert 0.5 < costs(1) < 0.9  # a faster machine makes all steps faster: they follow
    costs.observe(1, SHORT_CONTEXT, 1e9)
    assert costs(1) < 2.0


def test_a_curve_is_measured_once_for_a_model_and_device(tmp_path: Path) -> None:
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"weights")
    time_step, asked = timer(lambda n, cells: float(n + (cells == LONG_CONTEXT)))
    key = CurveKey(weights, "ggml, 2 threads", "a processor", "F16")
    source = CurveSource(tmp_path / "curves", key)
    assert source.curve is None
    measured = source.measure(time_step, SIZES[-1])
    assert asked and CurveSource(tmp_path / "curves", key).curve == measured
    other = CurveKey(weights, "ggml, 4 threads", "a processor", "F16")
    assert CurveSource(tmp_path / "curves", other).curve is None
    weights.write_bytes(b"other weights")
    assert CurveSource(tmp_path / "curves", key).curve is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"sizes": [2, 1], "seconds": [1, 2], "seconds_per_cell": 0}',
        b'{"sizes": [1, 2], "seconds": [1], "seconds_per_cell": 0}',
        b'{"sizes": [1, 2], "seconds": [0, 0], "seconds_per_cell": 0}',
        b'{"sizes": [1, 2], "seconds": [1, 2], "seconds_per_cell": "x"}',
    ],
)
def test_a_damaged_curve_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"weights")
    key = CurveKey(weights, "device", "machine", "F16")
    (tmp_path / key.file_name).write_bytes(content)
    assert CurveSource(tmp_path, key).curve is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    weights = tmp_path / "model.gguf"
    weights.write_bytes(b"weights")
    (tmp_path / "file").write_bytes(b"")
    time_step, _ = timer(lambda n, cells: float(n))
    source = CurveSource(tmp_path / "file" / "curves", CurveKey(weights, "d", "m", "F16"))
    assert source.measure(time_step, 8).sizes == (1, 2)
