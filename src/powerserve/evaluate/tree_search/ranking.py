"""Which points are fastest, by the original's formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from powerserve.core.errors import UsageError
from powerserve.evaluate.tree_search.database import params_json
from powerserve.evaluate.tree_search.timing import StepTimes
from powerserve.speculative.options import SpeculationCounters, TreeParams


@dataclass(frozen=True, slots=True)
class RankedPoint:
    """A point and the tokens per second that its counts promise; rank 1 is the fastest."""

    rank: int
    params: TreeParams
    counters: SpeculationCounters
    tokens_per_s: float

    @property
    def has_defaults(self) -> bool:
        """Whether the parameters are the default ones, but perhaps for the size of the tree."""
        size = self.params.draft_batch_size
        return self.params == replace(TreeParams(), draft_batch_size=size)

    def as_json(self) -> dict[str, Any]:
        """The point under the original's names."""
        return {
            "rank": self.rank,
            "tokens_per_s": self.tokens_per_s,
            "params": params_json(self.params),
            "stat": self.counters.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Ranking:
    """All points, the fastest first, and what they were judged by."""

    points: tuple[RankedPoint, ...]
    times: StepTimes

    @property
    def best(self) -> RankedPoint:
        """The fastest point."""
        return self.points[0]

    @property
    def defaults(self) -> list[RankedPoint]:
        """The default parameters with each size of tree that was tried."""
        return [point for point in self.points if point.has_defaults]

    @property
    def plain_tokens_per_s(self) -> float | None:
        """Tokens per second without speculation; None if that was not measured."""
        plain_ms = self.times.target_ms.get(1)
        return None if plain_ms is None else 1000 / plain_ms

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        return {
            "device": self.times.device,
            "target_ms": {str(size): ms for size, ms in self.times.target_ms.items()},
            "draft_ms": self.times.draft_ms,
            "plain_tokens_per_s": self.plain_tokens_per_s,
            "default_ranks": [point.rank for point in self.defaults],
            "points": [point.as_json() for point in self.points],
        }


def rank_points(points: Mapping[TreeParams, SpeculationCounters], times: StepTimes) -> Ranking:
    """Rank points by tokens per second.

    Raises UsageError if there are none, or if a time that is needed is not known.
    """
    if not points:
        raise UsageError("no point has been tried yet, so there is nothing to rank")
    speeds = {params: tokens_per_s(params, points[params], times) for params in points}
    fastest_first = sorted(points, key=lambda params: -speeds[params])
    ranked = (
        RankedPoint(rank, params, points[params], speeds[params])
        for rank, params in enumerate(fastest_first, 1)
    )
    return Ranking(tuple(ranked), times)


def tokens_per_s(params: TreeParams, counters: SpeculationCounters, times: StepTimes) -> float:
    """The original's score: generated / (iterations · T_target + (iterations + runs) · T_draft).

    T_target is a step of as many tokens as the tree has nodes. The draft's runs count once more for
    each iteration, because an accepted candidate that it has not computed is caught up on.
    """
    target_ms, draft_ms = times.target_ms.get(params.draft_batch_size), times.draft_ms
    if target_ms is None or draft_ms is None:
        missing = "--draft-ms" if draft_ms is None else f"--target-ms {params.draft_batch_size}=…"
        raise UsageError(f"the time of a step is not known; measure it, or give it by {missing}")
    iterations, runs = counters.num_iterations, counters.num_draft_forwards
    total_ms = iterations * target_ms + (iterations + runs) * draft_ms
    return 1000 * counters.num_generated_tokens / total_ms
