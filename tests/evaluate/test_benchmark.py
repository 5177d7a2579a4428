"""The benchmark's arithmetic, and that it runs the steps it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from powerserve import LLM
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.benchmark import BenchmarkPlan, Measurement, Sample, run_benchmark
from powerserve.evaluate.conditions import Machine, disturbances
from powerserve.evaluate.overhead import timed
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from tiny_models import TinyModel, write_tiny_model

QUIET = Machine("a CPU", 2, None, "a system", load_average=0.1)
PLAN = BenchmarkPlan(prefill_tokens=30, decode_tokens=5, depth=20, batch_sizes=(1, 3), repeats=2)


@pytest.fixture
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    path = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel())
    options = LoadOptions(
        context_size=PLAN.context_size,
        num_threads=1,
        max_sequences=PLAN.max_sequences,
        speculation=SpeculationOptions(mode=SpeculationMode.OFF),
    )
    with LLM(path, options) as loaded:
        yield loaded


def test_rates_are_tokens_by_time() -> None:
    samples = [Sample((1.0, 3.0), cpu_s=4.0), Sample((1.0, 1.0), cpu_s=2.0)]
    measured = Measurement("tg8", 8, samples)
    assert measured.rates == [2.0, 4.0]
    assert measured.deviation == pytest.approx(2**0.5)
    assert measured.median_step_s == 1.0
    assert measured.cpus == 1.0
    assert Measurement("tg8", 8, samples[:1]).deviation == 0.0


def test_the_steps_hold_the_planned_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = llm.loaded.engine
    batches: list[tuple[int, int]] = []  # tokens, and the most that one of them sees before
    run = engine._executor.run

    def noted(batch):  # type: ignore[no-untyped-def]
        batches.append((len(batch.token_ids), max(len(s.context) for s in batch.slices)))
        return run(batch)

    monkeypatch.setattr(engine._executor, "run", noted)
    run_benchmark(engine, replace(PLAN, repeats=1))
    half = len(batches) // 2
    assert batches[:half] == batches[half:]  # warming up does the same
    assert batches[:2] == [(20, 0), (30, 20)]
    assert batches[2:8] == [(20, 0), *((1, 20 + index) for index in range(5))]
    assert batches[8:10] == [(20, 0), (1, 20)]  # batch 1
    assert (60, 0) in batches and batches[half - 1][0] == 3
    assert not engine.has_work


def test_rounds_are_announced_and_warming_up_is_not_counted(llm: LLM) -> None:
    rounds: list[int] = []
    result = run_benchmark(llm.loaded.engine, PLAN, rounds.append)
    assert rounds == [0, 1, 2]
    assert [len(test.samples) for test in result.tests] == [2, 2]
    assert [len(point.samples) for point in result.curve.values()] == [2, 2]
    assert {size: point.num_tokens // size for size, point in result.curve.items()} == {
        1: 14,
        3: 14,
    }


def test_an_engine_that_is_warm_is_not_warmed_up_again(llm: LLM) -> None:
    rounds: list[int] = []
    result = run_benchmark(llm.loaded.engine, PLAN, rounds.append, warms_up=False)
    assert rounds == [1, 2]
    assert [len(test.samples) for test in result.tests] == [2, 2]


def test_a_quiet_machine_gives_no_warning() -> None:
    assert disturbances(QUIET, 2, [1.97, 1.99]) == []
    assert disturbances(QUIET, 2, []) == []


def test_load_and_lost_cpus_are_told() -> None:
    (load,) = disturbances(replace(QUIET, load_average=3.0), 2, [1.99])
    assert "3.00" in load
    (lost,) = disturbances(QUIET, 2, [1.99, 1.02])
    assert "1.02 CPUs" in lost


def test_timed_counts_and_restores() -> None:
    class Worker:
        def work(self, amount: int) -> int:
            return amount + 1

    worker = Worker()
    with timed(worker, "work") as watch:
        assert worker.work(1) == 2
        first = watch.elapsed_s
        assert first > 0
        worker.work(1)
        assert watch.elapsed_s > first
    assert not hasattr(worker.work, "elapsed_s")
