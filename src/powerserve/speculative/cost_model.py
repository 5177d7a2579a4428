"""What a step costs on this machine by its number of tokens, and which tree size pays.

Nothing about the shape of the curve is assumed: matrix kernels work in tiles, so 4 tokens may cost
less than 3, and where graphs are compiled for a few sizes, the curve is a staircase. Speed is
relative: the best size maximises expected tokens per second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""Tokens of the steps that are measured. Trees have these sizes too, so few graphs are compiled."""

SHORT_CONTEXT, LONG_CONTEXT = 256, 2048  # cells; the difference shows what attention adds
_MEASURING_ORDER = (1, 2, 4, 8, 16, 32, 3, 6, 12)  # what matters most first: time may be short
_NUM_REPEATS = 4
_OWN_WEIGHT, _COMMON_WEIGHT = 0.1, 0.02  # of a step's time in the running averages

StepTimer = Callable[[int, int], float]
"""(tokens, cells of context) -> seconds of one step."""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a step by its tokens, and what each cell of context adds."""

    sizes: tuple[int, ...]  # ascending, starting with 1
    seconds: tuple[float, ...]
    seconds_per_cell: float  # for each token of the step
    tree_sizes: tuple[int, ...] = SIZES  # steps that trees should fill, ascending from 1

    def __call__(self, num_tokens: int, num_cells: int = 0) -> float:
        """Seconds of a step of `num_tokens` that see `num_cells` cells each."""
        more_cells = max(0, num_cells - SHORT_CONTEXT)
        return self._in_short_context(num_tokens) + num_tokens * more_cells * self.seconds_per_cell

    def _in_short_context(self, num_tokens: int) -> float:
        """Linear between the measured sizes, and beyond the last with the last slope."""
        sizes, seconds = self.sizes, self.seconds
        index = bisect_left(sizes, num_tokens)
        if index < len(sizes) and sizes[index] == num_tokens:
            return seconds[index]
        upper = min(index, len(sizes) - 1)
        slope = (seconds[upper] - seconds[upper - 1]) / (sizes[upper] - sizes[upper - 1])
        return seconds[upper - 1] + slope * (num_tokens - sizes[upper - 1])


def measure_curve(time_step: StepTimer, budget_s: float, max_tokens: int = SIZES[-1]) -> CostCurve:
    """Measure steps of each size, again and again, for about `budget_s` seconds.

    A size counts with its fastest run, and never more than a larger one: fewer tokens could be
    padded. Sizes that the budget does not reach are left out, and lie on the line between their
    neighbours; 1 and 2 are measured in any case.
    """
    sizes = [size for size in _MEASURING_ORDER if size <= max_tokens]
    times = _fastest_steps(time_step, sizes, budget_s, num_needed=2)
    return CostCurve(tuple(times), tuple(times.values()), _seconds_per_cell(time_step, times[1]))


def measure_compiled(
    time_step: StepTimer, budget_s: float, batch_sizes: Sequence[int]
) -> CostCurve:
    """Measure a model that has graphs for some sizes only: smaller steps are padded to them.

    Each size is measured at least once. A step that is larger than all of them takes several runs.
    """
    times = _fastest_steps(time_step, batch_sizes, budget_s, num_needed=len(batch_sizes))
    stairs: dict[int, float] = {}
    start = 1
    for size, seconds in times.items():
        stairs[start] = stairs[size] = seconds
        start = size + 1
    largest = max(times)
    stairs.setdefault(largest + 1, stairs[largest] + stairs[1])
    stairs.setdefault(2 * largest, 2 * stairs[largest])
    return CostCurve(
        tuple(stairs),
        tuple(stairs.values()),
        _seconds_per_cell(time_step, stairs[1]),
        tuple(sorted({1, *batch_sizes})),
    )


def _fastest_steps(
    time_step: StepTimer, sizes: Sequence[int], budget_s: float, num_needed: int
) -> dict[int, float]:
    """Seconds by size, ascending; at least for the first `num_needed` of the sizes."""
    fastest_s: dict[int, float] = {}
    spent_s = 0.0
    for _ in range(_NUM_REPEATS):
        for size in sizes:
            expected_s = fastest_s.get(size, size * fastest_s.get(1, 0.0) / 2)
            if len(fastest_s) >= num_needed and spent_s + expected_s > budget_s:
                break
            seconds = time_step(size, SHORT_CONTEXT)
            spent_s += seconds
            fastest_s[size] = min(seconds, fastest_s.get(size, seconds))
    measured = sorted(fastest_s)
    return {size: min(fastest_s[other] for other in measured if other >= size) for size in measured}


def _seconds_per_cell(time_step: StepTimer, short_s: float) -> float:
    """What a cell of context adds to a step of one token, which takes `short_s` in a short one."""
    long_s = min(time_step(1, LONG_CONTEXT) for _ in range(2))
    return max(0.0, long_s - short_s) / (LONG_CONTEXT - SHORT_CONTEXT)


class LiveCosts:
    """A cost curve that follows the machine: each size's factor is the running average of what
    steps took by what the curve says. Sizes that do not occur follow the others slowly."""

    def __init__(self, curve: CostCurve) -> None:
        self.curve = curve
        self.least_useful = _least_useful(curve)
        self._factors = [1.0] * len(curve.tree_sizes)

    def __call__(self, num_tokens: int, num_cells: int = 0) -> float:
        """Seconds to expect of a step; see CostCurve."""
        return self.curve(num_tokens, num_cells) * self._factors[self._size_index(num_tokens)]

    def observe(self, num_tokens: int, num_cells: int, seconds: float) -> None:
        """Note how long a step took; a single outlier counts at most fourfold."""
        ratio = min(max(seconds / self.curve(num_tokens, num_cells), 0.25), 4.0)
        factors, observed = self._factors, self._size_index(num_tokens)
        own = factors[observed] + _OWN_WEIGHT * (ratio - factors[observed])
        self._factors = [factor + _COMMON_WEIGHT * (own - factor) for factor in factors]
        self._factors[observed] = own

    def _size_index(self, num_tokens: int) -> int:
        sizes = self.curve.tree_sizes
        return min(bisect_left(sizes, num_tokens), len(sizes) - 1)


def _least_useful(curve: CostCurve) -> float:
    """A candidate this improbable has no place in any tree: even where a step grows at the least
    cost, it would have to be twice as probable. The rest is for curves that change."""
    rises = [
        (curve(larger) - curve(smaller)) / (larger - smaller)
        for smaller, larger in pairwise(curve.tree_sizes)
    ]
    return min(max(0.5 * min(rises, default=curve(1)) / curve(1), 0.02), 0.2)


@dataclass(frozen=True, slots=True)
class Plan:
    """How many candidates to verify, and the tokens per second that are expected of it."""

    num_candidates: int
    tokens_per_s: float


def best_plan(
    step_seconds: Callable[[int], float],
    probabilities: Sequence[float],
    num_sequences: int = 1,
    *,
    sizes: Sequence[int] = SIZES,
    extra_s: float = 0.0,
    forced: bool = False,
) -> Plan:
    """The number of candidates that gives the most tokens per second.

    Args:
        step_seconds: what a step of so many tokens takes.
        probabilities: of the candidates' acceptance, descending.
        num_sequences: each gets one token in any case.
        sizes: of steps that trees should fill, ascending.
        extra_s: what proposing has cost and will cost.
        forced: verify at least one candidate if there is one.
    """
    best = Plan(0, num_sequences / (step_seconds(num_sequences) + extra_s))
    if forced and probabilities:
        best = Plan(0, 0.0)
    expected, taken = float(num_sequences), 0
    for count in _counts(num_sequences, len(probabilities), sizes):
        expected += sum(probabilities[taken:count])
        taken = count
        rate = expected / (step_seconds(num_sequences + count) + extra_s)
        if rate > best.tokens_per_s:
            best = Plan(count, rate)
    return best


def _counts(num_sequences: int, limit: int, sizes: Sequence[int]) -> list[int]:
    """Numbers of candidates that are worth a look: those that fill a step of one of the sizes."""
    counts = [size - num_sequences for size in sizes if 0 < size - num_sequences <= limit]
    if not counts or sizes[-1] <= num_sequences:
        counts = [limit] if limit else []
    return counts
