"""Where the time of a step goes: its operations, each computed and timed on its own."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from powerserve.backend.base import Batch, Cache, LoadedModel, OperationTime
from powerserve.evaluate.scoring import StepSettings
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import Executor, cache_cells, step_shape


@dataclass(frozen=True, slots=True)
class OperationKind:
    """Operations of one name that read the same weight of different layers."""

    operation: str
    weight: str  # without layer; empty: none
    count: int  # in one step
    seconds: float  # of all of them: the sum of each one's median


@dataclass(frozen=True, slots=True)
class StepProfile:
    """A step of one sequence, taken apart."""

    num_tokens: int
    depth: int  # tokens in the cache before
    kinds: tuple[OperationKind, ...]  # slowest first
    fastest_profile_s: float  # of all operations of a step, one by one …
    fastest_step_s: float  # … and of the step as it usually runs

    @property
    def total_s(self) -> float:
        """Seconds of all kinds together."""
        return sum(kind.seconds for kind in self.kinds)


def profile_step(
    model: LoadedModel, *, num_tokens: int, depth: int, repeats: int, settings: StepSettings
) -> StepProfile:
    """Time a step of `num_tokens` tokens after `depth` others, as it is and operation by operation.

    The two take turns, `repeats` times after one for warming up. Logits are computed of the last
    token.
    """
    cache = model.new_cache(cache_cells(model, depth + num_tokens), settings.kv_dtype)
    try:
        _fill(model, cache, depth, settings.batch_size)
        batch = _step(num_tokens, depth)
        steps_s, profiles = _measure(model, cache, batch, repeats)
    finally:
        cache.close()
    fastest_s = min(sum(time.seconds for time in profile) for profile in profiles)
    return StepProfile(num_tokens, depth, _kinds(profiles), fastest_s, min(steps_s))


def _fill(model: LoadedModel, cache: Cache, depth: int, batch_size: int) -> None:
    executor = Executor(model, cache)
    try:
        for start in range(0, depth, batch_size):
            executor.run(_step(min(batch_size, depth - start), start))
    finally:
        executor.close()


def _step(num_tokens: int, start: int) -> Batch:
    """Any tokens will do: they do not change the time."""
    return chain_batch(np.zeros(num_tokens, np.int32), start, np.array([num_tokens - 1], np.int32))


def _measure(
    model: LoadedModel, cache: Cache, batch: Batch, repeats: int
) -> tuple[list[float], list[list[OperationTime]]]:
    """Durations of whole steps, and of the operations of others."""
    executable = model.compile(step_shape(batch, cache.num_cells), cache)
    steps_s, profiles = [], []
    try:
        for _ in range(1 + repeats):
            start_s = perf_counter()
            executable.run(batch)
            steps_s.append(perf_counter() - start_s)
            profiles.append(executable.profile(batch))
    finally:
        executable.close()
    return steps_s[1:], profiles[1:]


def _kinds(profiles: Sequence[Sequence[OperationTime]]) -> tuple[OperationKind, ...]:
    """The operations of several like steps by what they are, slowest first.

    Each operation's median is taken before they are added up: what disturbs a step hits one of
    them, and another the next time.
    """
    durations: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for times in zip(*profiles, strict=True):
        operation, weight, _ = times[0]
        seconds = statistics.median(time.seconds for time in times)
        durations[operation, _role(weight)].append(seconds)
    kinds = [OperationKind(*kind, len(each), sum(each)) for kind, each in durations.items()]
    return tuple(sorted(kinds, key=lambda kind: -kind.seconds))


def _role(weight: str) -> str:
    """`blk.3.ffn_down.weight` -> `ffn_down`"""
    return re.sub(r"^blk\.\d+\.", "", weight).removesuffix(".weight")
