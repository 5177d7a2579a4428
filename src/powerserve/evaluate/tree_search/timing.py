"""What steps of target and draft cost on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from powerserve.backend.base import LoadedModel
from powerserve.cache.cells import CellPool
from powerserve.core.dtypes import DType
from powerserve.core.errors import ConfigError
from powerserve.executor.executor import Executor, cache_cells
from powerserve.speculative.cost_model import SHORT_CONTEXT
from powerserve.speculative.step_timer import time_step

NUM_REPEATS = 5


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Milliseconds of a target's step by its tokens, and of a draft's step of one token."""

    target_ms: dict[int, float] = field(default_factory=dict)
    draft_ms: float | None = None
    device: str = ""  # where they were measured

    def __post_init__(self) -> None:
        times = [*self.target_ms.values(), 1.0 if self.draft_ms is None else self.draft_ms]
        if not all(0 < ms < inf for ms in times):
            raise ConfigError(
                "the time of a step must be positive; remove times.json to measure again"
            )


def fastest_steps_ms(model: LoadedModel, sizes: Iterable[int], kv_dtype: DType) -> dict[int, float]:
    """Milliseconds of steps by their tokens in a context of 256: the fastest of a few each.

    The fastest, because disturbances only ever make a step slower. The first one of a size compiles
    its graph.
    """
    fastest_s = dict.fromkeys(sorted(sizes), inf)
    num_cells = cache_cells(model, SHORT_CONTEXT + max(fastest_s))
    cache = model.new_cache(num_cells, kv_dtype)
    executor, pool = Executor(model, cache), CellPool(num_cells)
    try:
        for _ in range(NUM_REPEATS):
            for size, seconds in fastest_s.items():
                now = time_step(executor, pool, size, SHORT_CONTEXT)
                fastest_s[size] = min(seconds, now)
    finally:
        executor.close()
        cache.close()
    return {size: 1000 * seconds for size, seconds in fastest_s.items()}
