"""Prefill, decode and batch speed of an engine, measured through the steps it serves with.

Tokens are random, sampling is greedy and end tokens are ignored, so that neither text nor luck
matters. Whatever a step costs in Python is part of the time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, process_time

import numpy as np

from powerserve.core.errors import UsageError
from powerserve.engine.engine import Engine
from powerserve.engine.sequence import Sequence
from powerserve.sampler.params import SamplingParams

CURVE_STEPS = 14
"""Steps per sample of the batch curve: 16 sequences then still fit one block of 256 cells, so that
every point of the curve attends to equally many."""

_GREEDY = SamplingParams(temperature=0, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """What to measure, in tokens; 0 leaves a measurement out."""

    prefill_tokens: int = 512
    decode_tokens: int = 128
    depth: int = 0  # cached before the measurement begins
    batch_sizes: tuple[int, ...] = ()  # the batch curve: sequences that decode in one step
    repeats: int = 5

    @property
    def context_size(self) -> int:
        """Cells that the largest measurement needs."""
        before = max(self.depth, 1)
        curve = max(self.batch_sizes, default=0) * (before + CURVE_STEPS + 2)
        return max(self.depth + self.prefill_tokens + 1, before + self.decode_tokens + 1, curve)

    @property
    def max_sequences(self) -> int:
        """Sequences that must run at once."""
        return max(self.batch_sizes, default=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition: the duration of each step, and the CPU time of the process meanwhile."""

    steps_s: tuple[float, ...]
    cpu_s: float

    @property
    def wall_s(self) -> float:
        """Seconds of all steps together."""
        return sum(self.steps_s)


@dataclass(slots=True)
class Measurement:
    """All repetitions of one test; each computed `num_tokens` tokens."""

    name: str
    num_tokens: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each repetition."""
        return [self.num_tokens / sample.wall_s for sample in self.samples]

    @property
    def deviation(self) -> float:
        """Standard deviation of the rates; 0 for a single repetition."""
        return statistics.stdev(self.rates) if len(self.samples) > 1 else 0.0

    @property
    def median_step_s(self) -> float:
        """The typical step of all repetitions."""
        return statistics.median(step for sample in self.samples for step in sample.steps_s)

    @property
    def cpus(self) -> float:
        """CPUs that the process had on average."""
        wall_s = sum(sample.wall_s for sample in self.samples)
        return sum(sample.cpu_s for sample in self.samples) / wall_s


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What was measured; the curve has one measurement per batch size, by that size."""

    tests: list[Measurement]
    curve: dict[int, Measurement]


_Test = tuple[Measurement, Callable[[], Sample]]


def run_benchmark(
    engine: Engine,
    plan: BenchmarkPlan,
    on_round: Callable[[int], None] = lambda _: None,
    *,
    warms_up: bool = True,
) -> BenchmarkResult:
    """Measure everything in the plan, once for warming up (round 0) and `repeats` times for real.

    The tests take turns, so that a disturbance of the machine does not meet only one of them.

    Args:
        engine: with at least the plan's context_size and max_sequences, and nothing to do.
        plan: what to measure.
        on_round: told the number of each round before it begins.
        warms_up: whether there is a round 0; an engine that has run the plan needs none.

    Raises:
        UsageError: the engine is deterministic, so it cannot run what the plan asks for.
    """
    if engine.config.deterministic and (plan.depth or plan.batch_sizes):
        raise UsageError(
            "a deterministic engine runs one sequence at a time and keeps no prefix; "
            "measure depths and batches without --deterministic"
        )
    runs = _Runs(engine, plan)
    tests, curve = runs.tests(), runs.curve()
    for number in range(0 if warms_up else 1, plan.repeats + 1):
        on_round(number)
        for measurement, measure in [*tests, *curve.values()]:
            sample = measure()
            if number:
                measurement.samples.append(sample)
    return BenchmarkResult(
        [measurement for measurement, _ in tests],
        {size: measurement for size, (measurement, _) in curve.items()},
    )


def random_tokens(rng: np.random.Generator, count: int, vocab_size: int) -> list[int]:
    """`count` token ids, any of the vocabulary."""
    return [int(token) for token in rng.integers(0, vocab_size, count)]


class _Runs:
    """What one repetition of each test does."""

    def __init__(self, engine: Engine, plan: BenchmarkPlan) -> None:
        self._engine = engine
        self._plan = plan
        self._rng = np.random.default_rng(0)
        self._suffix = f"@{plan.depth}" if plan.depth else ""

    def tests(self) -> list[_Test]:
        """Prefill and decode, as far as they are wanted."""
        num_prefill, num_decode = self._plan.prefill_tokens, self._plan.decode_tokens
        tests: list[_Test] = []
        if num_prefill:
            tests.append(
                (Measurement(f"pp{num_prefill}{self._suffix}", num_prefill), self._prefill)
            )
        if num_decode:
            decode = Measurement(f"tg{num_decode}{self._suffix}", num_decode)
            tests.append((decode, partial(self._decode, 1, num_decode)))
        return tests

    def curve(self) -> dict[int, _Test]:
        """Steps of several sequences, by their number."""
        return {
            size: (
                Measurement(f"batch{size}{self._suffix}", size * CURVE_STEPS),
                partial(self._decode, size, CURVE_STEPS),
            )
            for size in self._plan.batch_sizes
        }

    def _prefill(self) -> Sample:
        """A prompt, from its first step to its first token; its first `depth` tokens are cached."""
        self._engine.clear_prefixes()
        start = self._tokens(self._plan.depth)
        if start:
            self._answer_one_token(start)
        self._add([*start, *self._tokens(self._plan.prefill_tokens)], max_tokens=1)
        return self._timed_steps(None)

    def _decode(self, num_sequences: int, num_steps: int) -> Sample:
        """Sequences that are all past their first token, for `num_steps` steps."""
        self._engine.clear_prefixes()
        sequences = [
            self._add(self._tokens(max(self._plan.depth, 1)), max_tokens=None)
            for _ in range(num_sequences)
        ]
        while not all(sequence.num_generated for sequence in sequences):
            self._engine.step()
        sample = self._timed_steps(num_steps)
        for sequence in sequences:
            self._engine.cancel(sequence)
        return sample

    def _timed_steps(self, count: int | None) -> Sample:
        """Time `count` steps; None: until there is nothing more to do."""
        durations_s: list[float] = []
        cpu_start_s = process_time()
        while self._engine.has_work and len(durations_s) != count:
            start_s = perf_counter()
            self._engine.step()
            durations_s.append(perf_counter() - start_s)
        return Sample(tuple(durations_s), process_time() - cpu_start_s)

    def _answer_one_token(self, prompt: list[int]) -> None:
        self._add(prompt, max_tokens=1)
        while self._engine.has_work:
            self._engine.step()

    def _add(self, prompt: list[int], *, max_tokens: int | None) -> Sequence:
        return self._engine.add(prompt, _GREEDY.replace(max_tokens=max_tokens))

    def _tokens(self, count: int) -> list[int]:
        return random_tokens(self._rng, count, self._engine.model.config.vocab_size)
