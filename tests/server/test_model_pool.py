"""What loading, refusing and unloading models leaves behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from powerserve.engine.loader import LoadedEngine, LoadOptions, load_engine
from powerserve.server.catalogue import Catalogue
from powerserve.server.errors import ApiError
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import ModelPool
from powerserve.server.settings import Limits, ServerSettings
from powerserve.storage.resolve import ModelSource
from server_process import wait_until
from tiny_models import write_tiny_model

OPTIONS = LoadOptions(num_threads=1, context_size=256)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        write_tiny_model(tmp_path / f"{name}.gguf")
    return tmp_path


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nobody holds any more is released."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Pool:
    """A pool with room for one of the models, that counts how often it loads one."""

    def __init__(self, folder: Path) -> None:
        self.loaded: list[str] = []
        source = Catalogue(work_folder=folder).find("first")
        engine = load_engine(source, OPTIONS)
        limits = Limits(memory_bytes=int(1.5 * engine.plan.total_bytes))
        engine.close()
        settings = ServerSettings(limits=limits)
        self.pool = ModelPool(Catalogue(work_folder=folder), self.load, settings, Metrics())

    def load(self, source: ModelSource) -> LoadedEngine:
        self.loaded.append(source.name)
        return load_engine(source, OPTIONS)


def engines() -> int:
    return sum(isinstance(each, LoadedEngine) for each in gc.get_objects())


def expect_engines(count: int) -> None:
    """The thread that closed the last one may hold it for a moment longer."""
    wait_until(lambda: engines() == count)


def test_a_model_that_is_unloaded_is_gone_at_once(folder: Path, no_collector: None) -> None:
    async def run() -> None:
        tested = Pool(folder)
        before = engines()
        for name in ("first", "second", "first"):
            async with tested.pool.lease(name):
                expect_engines(before + 1)
        await tested.pool.close()
        expect_engines(before)

    asyncio.run(run())


def test_a_model_known_to_be_too_large_is_not_loaded(folder: Path, no_collector: None) -> None:
    async def run() -> None:
        tested = Pool(folder)
        async with tested.pool.lease("second"):
            pass
        async with tested.pool.lease("first"):
            before = engines()
            for _ in range(3):
                with pytest.raises(ApiError, match="no memory for another model"):
                    async with tested.pool.lease("second"):
                        pass
            expect_engines(before)
        assert tested.loaded == ["second", "first"]
        await tested.pool.close()

    asyncio.run(run())


def test_models_that_are_wanted_at_once_do_not_throw_each_other_out(folder: Path) -> None:
    """One is loaded and used; the other has to come again."""

    async def use(tested: Pool, name: str) -> bool:
        try:
            async with tested.pool.lease(name):
                await asyncio.sleep(0.1)
        except ApiError as error:
            assert error.retry_after_s
            return False
        return True

    async def run() -> None:
        tested = Pool(folder)
        for name in ("first", "second"):  # so that what they take is known
            assert await use(tested, name)
        for _ in range(5):
            for name in ("first", "second"):
                await tested.pool.unload(name)
            tested.loaded.clear()
            users = [use(tested, name) for name in ("first", "second") * 3]
            assert any(await asyncio.gather(*users))
            assert len(tested.loaded) <= 2
        await tested.pool.close()

    asyncio.run(run())


def test_the_first_refusal_keeps_nothing(folder: Path, no_collector: None) -> None:
    """What the model takes is known only once it is loaded; then it must go again."""

    async def run() -> None:
        tested = Pool(folder)
        async with tested.pool.lease("first"):
            before = engines()
            with pytest.raises(ApiError, match="no memory for another model"):
                async with tested.pool.lease("second"):
                    pass
            expect_engines(before)
        await tested.pool.close()

    asyncio.run(run())
