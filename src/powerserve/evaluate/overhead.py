"""What a decode step costs outside the kernels: sampling, and the Python around everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.core.errors import UsageError
from powerserve.engine.engine import Engine
from powerserve.engine.loader import LoadedEngine
from powerserve.sampler.params import SamplingParams

_GREEDY = SamplingParams(temperature=0, ignore_eos=True)
_WARM_UP_STEPS = 16


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one decode step of one sequence; the rest of `total_s` is Python."""

    total_s: float
    compute_s: float
    sampling_s: float

    @property
    def python_s(self) -> float:
        """Scheduling, writing the inputs, reading the logits, noting the token."""
        return self.total_s - self.compute_s - self.sampling_s


class Stopwatch:
    """A function that counts the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.elapsed_s = 0.0

    def __call__(self, *arguments: Any) -> Any:
        start_s = perf_counter()
        try:
            return self._function(*arguments)
        finally:
            self.elapsed_s += perf_counter() - start_s


@contextmanager
def timed(owner: object, name: str) -> Iterator[Stopwatch]:
    """Time the calls of `owner.name` until the context ends."""
    original = getattr(owner, name)
    watch = Stopwatch(original)
    setattr(owner, name, watch)
    try:
        yield watch
    finally:
        setattr(owner, name, original)


def measure_overhead(loaded: LoadedEngine, num_steps: int) -> list[StepTime]:
    """Decode `num_steps` tokens greedily, after a few for warming up.

    Raises:
        UsageError: the backend is not ggml: others have no kernels of their own to subtract.
    """
    if not isinstance(loaded.backend, GgmlBackend):
        raise UsageError(f"the overhead can be measured with ggml, not with {loaded.backend.name}")
    engine = loaded.engine
    sequence = engine.add([0], _GREEDY)
    with (
        timed(loaded.backend.library, "backend_graph_compute") as compute,
        timed(sequence.sampler, "sample") as sampling,
    ):
        steps = [_step(engine, compute, sampling) for _ in range(_WARM_UP_STEPS + num_steps)]
    engine.cancel(sequence)
    return steps[_WARM_UP_STEPS:]


def _step(engine: Engine, compute: Stopwatch, sampling: Stopwatch) -> StepTime:
    compute.elapsed_s = sampling.elapsed_s = 0.0
    start_s = perf_counter()
    engine.step()
    return StepTime(perf_counter() - start_s, compute.elapsed_s, sampling.elapsed_s)
