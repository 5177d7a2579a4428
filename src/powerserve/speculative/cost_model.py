"""What a step costs on this machine by its number of tokens, and which tree size pays.

Nothing about the shape of the curve is assumed: matrix kernels work in tiles, so 4 tokens may cost
less than 3. Speed is relative: the best size maximises expected tokens per second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
"""Tokens of the steps that are measured. Trees have these sizes too, so few graphs are compiled."""

SHORT_CONTEXT, LONG_CONTEXT = 256, 2048  # cells; the difference shows what attention adds
_NUM_REPEATS = 3
_SLACK_WEIGHT = 0.1  # of a new step's time in the running average

StepTimer = Callable[[int, int], float]
"""(tokens, cells of context) -> seconds of one step."""


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Seconds of a step by its tokens, and what each cell of context adds."""

    sizes: tuple[int, ...]  # ascending, starting with 1
    seconds: tuple[float, ...]
    seconds_per_cell: float  # for each token of the step

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
    """Measure steps of each size, small ones first, for about `budget_s` seconds.

    Each size counts with its fastest run. Sizes that the budget does not reach are left out: the
    curve goes on straight there. Two sizes are measured in any case.
    """
    sizes: list[int] = []
    seconds: list[float] = []
    spent_s = 0.0
    for size in SIZES:
        expected_s = size / sizes[-1] * seconds[-1] if sizes else 0.0
        if size > max_tokens or (len(sizes) >= 2 and spent_s + 2 * expected_s > budget_s):
            break
        time_step(size, SHORT_CONTEXT)  # compiles the graph and warms the caches
        runs = [time_step(size, SHORT_CONTEXT) for _ in range(_NUM_REPEATS)]
        spent_s += sum(runs) * (1 + 1 / _NUM_REPEATS)
        sizes.append(size)
        seconds.append(min(runs))
    time_step(1, LONG_CONTEXT)
    long_s = min(time_step(1, LONG_CONTEXT) for _ in range(_NUM_REPEATS))
    per_cell = max(0.0, long_s - seconds[0]) / (LONG_CONTEXT - SHORT_CONTEXT)
    return CostCurve(tuple(sizes), tuple(seconds), per_cell)


class Slack:
    """How much longer steps take than their curve says: averaged, so that the curve need not be
    exact, and fading, so that one bad moment is forgotten."""

    def __init__(self) -> None:
        self.factor = 1.0

    def observe(self, predicted_s: float, actual_s: float) -> None:
        """Note how long a step took; a single outlier counts at most fourfold."""
        ratio = min(max(actual_s / predicted_s, 0.25), 4.0)
        self.factor += _SLACK_WEIGHT * (ratio - self.factor)

    def relax(self, other: Slack) -> None:
        """Move a little towards what another kind of step shows, for want of own observations."""
        self.factor += 0.01 * (other.factor - self.factor)


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
    extra_s: float = 0.0,
    forced: bool = False,
) -> Plan:
    """The number of candidates that gives the most tokens per second.

    Args:
        step_seconds: what a step of so many tokens takes.
        probabilities: of the candidates' acceptance, descending.
        num_sequences: each gets one token in any case.
        extra_s: what proposing has cost and will cost.
        forced: verify at least one candidate if there is one.
    """
    best = Plan(0, num_sequences / (step_seconds(num_sequences) + extra_s))
    if forced and probabilities:
        best = Plan(0, 0.0)
    expected, taken = float(num_sequences), 0
    for count in _counts(num_sequences, len(probabilities)):
        expected += sum(probabilities[taken:count])
        taken = count
        rate = expected / (step_seconds(num_sequences + count) + extra_s)
        if rate > best.tokens_per_s:
            best = Plan(count, rate)
    return best


def _counts(num_sequences: int, limit: int) -> list[int]:
    """Numbers of candidates that are worth a look: those that fill a step of a measured size."""
    counts = [size - num_sequences for size in SIZES if 0 < size - num_sequences <= limit]
    if not counts or SIZES[-1] <= num_sequences:
        counts = [limit] if limit else []
    return counts
