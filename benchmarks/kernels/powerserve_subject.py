"""PowerServe with the kernels of its choice, answering questions (subject.py).

    POWERSERVE_GGML_DIR=FOLDER python powerserve_subject.py MODEL THREADS auto|ggml|native

Prefill and decode are steps of the engine, with scheduling and greedy sampling; the other steps go
to the executor, as those by which speculation decides how many tokens to verify.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from subject import Subject, answer_questions

from powerserve.backend.ggml.backend import GgmlModel
from powerserve.cache.cells import CellPool
from powerserve.core.errors import PowerServeError
from powerserve.engine.loader import LoadOptions, load_engine
from powerserve.evaluate.benchmark import BenchmarkPlan, BenchmarkResult, run_benchmark
from powerserve.evaluate.conditions import describe_kernels
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import Executor
from powerserve.llm import locate_model
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.step_timer import time_step

NUM_CELLS = 1024


class PowerServe(Subject):
    """An engine, and an executor beside it with a cache of its own."""

    def __init__(self, model: str, num_threads: int, kernels: str) -> None:
        options = LoadOptions(
            context_size=NUM_CELLS,
            num_threads=num_threads,
            max_sequences=1,
            kernels=kernels,
            speculation=SpeculationOptions(mode=SpeculationMode.OFF),
        )
        loaded = load_engine(locate_model(model), options)
        self._engine = loaded.engine
        cache = loaded.model.new_cache(NUM_CELLS, options.kv_dtype)
        self._executor, self._pool = Executor(loaded.model, cache), CellPool(NUM_CELLS)
        self._depth = 0
        found = describe_kernels(loaded.backend)
        self.system = f"{found.origin} ggml {found.version}: {' '.join(found.features)}"
        if isinstance(loaded.model, GgmlModel) and loaded.model.packing is not None:
            self.system += f"; own kernels: {loaded.model.packing}"

    def prefill(self, num_tokens: int) -> list[float]:
        result = self._bench(BenchmarkPlan(prefill_tokens=num_tokens, decode_tokens=0, repeats=1))
        return [result.tests[0].samples[0].wall_s]

    def decode(self, depth: int, num_tokens: int) -> list[float]:
        plan = BenchmarkPlan(prefill_tokens=0, decode_tokens=num_tokens, depth=depth, repeats=1)
        return list(self._bench(plan).tests[0].samples[0].steps_s)

    def begin_steps(self, depth: int) -> None:
        self._depth = depth  # what the cells hold does not change the time

    def step(self, num_tokens: int) -> float:
        return time_step(self._executor, self._pool, num_tokens, self._depth)

    def predict(self, token_ids: Sequence[int]) -> list[int]:
        logits = self._executor.run(chain_batch(np.array(token_ids, np.int32), 0))
        return [int(token_id) for token_id in logits.argmax(axis=1)]

    def _bench(self, plan: BenchmarkPlan) -> BenchmarkResult:
        return run_benchmark(self._engine, plan, warms_up=False)


def main() -> None:
    """Load, say so, and answer until the input ends."""
    model, num_threads, kernels = sys.argv[1:]
    try:
        answer_questions(PowerServe(model, int(num_threads), kernels))
    except PowerServeError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
