"""The engine's thread and the loop's end of it, with a tiny model in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from powerserve.core.errors import BackendError, PowerServeError
from powerserve.engine.loader import LoadedEngine, LoadOptions, load_engine
from powerserve.sampler import grammar_compiler
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.sampler.params import SamplingParams
from powerserve.server.catalogue import Catalogue
from powerserve.server.engine_thread import Task
from powerserve.server.events import Ended, Event, Failed, Piece
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import ModelPool
from powerserve.server.model_runner import ModelRunner, OpenGeneration
from powerserve.server.settings import ServerSettings
from powerserve.storage.resolve import ModelSource, resolve_model
from powerserve.tokenizer.tokenizer import Tokenizer
from tiny_models import write_tiny_model

PROMPT = [1, 2, 3]
ENDLESS = SamplingParams(ignore_eos=True)


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return resolve_model(write_tiny_model(tmp_path / "tiny.gguf"))


def load(source: ModelSource) -> LoadedEngine:
    return load_engine(source, LoadOptions(context_size=256))


def with_runner(
    source: ModelSource, test: Callable[[ModelRunner], Coroutine[Any, Any, None]]
) -> None:
    """Run a test with a loaded model inside an event loop."""

    async def run() -> None:
        runner = ModelRunner("tiny", load(source), Metrics())
        try:
            await test(runner)
        finally:
            await runner.stop()

    asyncio.run(run())


async def all_events(generation: OpenGeneration, arrived: asyncio.Event) -> list[Event]:
    """Everything to the end of one generation."""
    events: list[Event] = []
    async with asyncio.timeout(30):
        while not events or not isinstance(events[-1], Ended | Failed):
            await arrived.wait()
            arrived.clear()
            events += generation.mailbox.take()
    return events


def test_grammars_are_made_ready_before_the_first_answer(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later it would keep the interpreter from every stream for up to a second."""
    threads: list[str] = []

    def noted(tokenizer: Tokenizer) -> object:
        threads.append(threading.current_thread().name)
        return make(tokenizer)

    make = grammar_compiler._vocabulary
    monkeypatch.setattr(grammar_compiler, "_vocabulary", noted)

    async def test(runner: ModelRunner) -> None:
        arrived = asyncio.Event()
        with runner.open([Task(PROMPT, SamplingParams(max_tokens=2))], arrived) as (generation,):
            await all_events(generation, arrived)
        assert threads == ["engine tiny"]
        runner.loaded.grammars.compile(Grammar(GrammarKind.REGEX, "[ab]+"))
        assert len(threads) == 1

    with_runner(source, test)


def test_what_nobody_takes_is_joined(source: ModelSource) -> None:
    async def test(runner: ModelRunner) -> None:
        arrived = asyncio.Event()
        task = Task(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True))
        with runner.open([task], arrived) as (generation,):
            while not generation.mailbox.is_complete:
                await asyncio.sleep(0.01)
            pieces = [each for each in generation.mailbox.take() if isinstance(each, Piece)]
        assert sum(piece.num_tokens for piece in pieces) == 100
        assert len(pieces) <= 2  # before and after the prompt's own events
        assert runner.generations == []

    with_runner(source, test)


def test_leaving_the_block_ends_the_work(source: ModelSource) -> None:
    async def test(runner: ModelRunner) -> None:
        with runner.open([Task(PROMPT, ENDLESS)] * 3, asyncio.Event()):
            while not any(each.num_generated for each in runner.generations):
                await asyncio.sleep(0.001)
        async with asyncio.timeout(30):
            while runner.generations:
                await asyncio.sleep(0.001)

    with_runner(source, test)


def test_what_is_wrong_with_one_request_does_not_end_others(source: ModelSource) -> None:
    async def test(runner: ModelRunner) -> None:
        arrived = [asyncio.Event(), asyncio.Event()]
        good = Task(PROMPT, SamplingParams(max_tokens=5, ignore_eos=True))
        with (
            runner.open([good], arrived[0]) as (sound,),
            runner.open([Task([10**6], ENDLESS)], arrived[1]) as (broken,),
        ):
            (failed,) = await all_events(broken, arrived[1])
            assert isinstance(failed, Failed) and "token id" in str(failed.error)
            assert isinstance((await all_events(sound, arrived[0]))[-1], Ended)

    with_runner(source, test)


def test_an_engine_that_fails_tells_everyone(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(runner: ModelRunner) -> None:
        engine, arrived = runner.loaded.engine, asyncio.Event()
        monkeypatch.setattr(engine, "step", _raise)
        with runner.open([Task(PROMPT, ENDLESS)], arrived) as (generation,):
            *_, last = await all_events(generation, arrived)
        assert isinstance(last, Failed) and isinstance(last.error, BackendError)
        assert "ZeroDivisionError" in str(last.error)
        while runner.failure is None:
            await asyncio.sleep(0.001)
        with runner.open([Task(PROMPT, ENDLESS)], arrived) as (late,):
            assert isinstance((await all_events(late, arrived))[-1], Failed)

    with_runner(source, test)


def test_a_failed_model_is_loaded_anew(
    source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        pool = ModelPool(Catalogue(fixed=source), load, ServerSettings(), Metrics())
        async with pool.lease("") as first:
            monkeypatch.setattr(first.loaded.engine, "step", _raise)
            with first.open([Task(PROMPT, ENDLESS)], asyncio.Event()):
                while first.failure is None:
                    await asyncio.sleep(0.001)
        async with pool.lease("") as second:
            assert second is not first and second.failure is None
        await pool.close()

    asyncio.run(run())


def test_a_model_asked_for_twice_is_loaded_once(source: ModelSource) -> None:
    loads: list[str] = []

    def counting_load(source: ModelSource) -> LoadedEngine:
        loads.append(source.name)
        return load(source)

    async def run() -> None:
        pool = ModelPool(Catalogue(fixed=source), counting_load, ServerSettings(), Metrics())

        async def ask() -> ModelRunner:
            async with pool.lease("tiny") as runner:
                return runner

        hasty = asyncio.create_task(ask())
        runners = asyncio.gather(ask(), ask(), ask())
        await asyncio.sleep(0)
        hasty.cancel()  # who leaves does not take the model from the others
        assert len(set(await runners)) == 1
        await pool.close()

    asyncio.run(run())
    assert loads == ["tiny"]


def test_a_load_that_fails_can_be_tried_again(source: ModelSource) -> None:
    outcomes = iter([PowerServeError("not now"), None])

    def flaky_load(source: ModelSource) -> LoadedEngine:
        if (error := next(outcomes)) is not None:
            raise error
        return load(source)

    async def run() -> None:
        pool = ModelPool(Catalogue(fixed=source), flaky_load, ServerSettings(), Metrics())
        with pytest.raises(PowerServeError, match="not now"):
            async with pool.lease(""):
                pass
        async with pool.lease("") as runner:
            assert runner.failure is None
        await pool.close()

    asyncio.run(run())


def _raise() -> list[Any]:
    raise ZeroDivisionError
