"""The models that are loaded: on demand, as many as fit, the longest unused goes first."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic

from powerserve.core.errors import MemoryLimitError, PowerServeError
from powerserve.engine.loader import LoadedEngine
from powerserve.server.catalogue import Catalogue
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.metrics import Metrics
from powerserve.server.model_runner import ModelRunner
from powerserve.server.settings import ServerSettings
from powerserve.storage.progress import format_bytes
from powerserve.storage.resolve import ModelSource

logger = logging.getLogger("powerserve.server")

Loader = Callable[[ModelSource], LoadedEngine]
Files = tuple[Path, Path | None]  # of the model and of its draft: what makes it another model
RETRY_AFTER_S = 5
_TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Resident:
    """A loaded model, and how long it stays if nobody asks for it: None is for ever."""

    runner: ModelRunner
    remaining_s: float | None


@dataclass(slots=True, eq=False)
class _Loaded:
    files: Files
    runner: ModelRunner
    keep_alive_s: float | None
    num_users: int = 0
    last_used: float = field(default_factory=monotonic)

    @property
    def size_bytes(self) -> int:
        return self.runner.loaded.plan.total_bytes

    @property
    def remaining_s(self) -> float | None:
        if self.keep_alive_s is None or self.keep_alive_s == inf:
            return None
        idle_s = 0.0 if self.num_users else monotonic() - self.last_used
        return max(0.0, self.keep_alive_s - idle_s)

    @property
    def is_expired(self) -> bool:
        return not self.num_users and self.remaining_s == 0


class ModelPool:
    """Loads models one at a time, in a thread, and drops none that is in use."""

    def __init__(
        self, catalogue: Catalogue, load: Loader, settings: ServerSettings, metrics: Metrics
    ) -> None:
        self.catalogue = catalogue
        self._load = load
        self._limits = settings.limits
        self._prefixes = settings.prefixes
        self._metrics = metrics
        self._loaded: dict[Files, _Loaded] = {}
        # In bytes: what models take that were loaded before, and whose files are as they were.
        self._sizes: dict[tuple[Files, int], int] = {}
        self._wanted: Counter[Files] = Counter()  # how many wait for it to be loaded
        self._loads: dict[Files, asyncio.Task[_Loaded]] = {}
        self._turn = asyncio.Lock()  # to load or unload

    @property
    def runners(self) -> list[ModelRunner]:
        """The models that are loaded now."""
        return [entry.runner for entry in self._loaded.values()]

    @property
    def residents(self) -> list[Resident]:
        """The models that are loaded now, and until when."""
        return [Resident(entry.runner, entry.remaining_s) for entry in self._loaded.values()]

    @asynccontextmanager
    async def lease(
        self, name: str, *, keep_alive_s: float | None = None
    ) -> AsyncIterator[ModelRunner]:
        """The model called `name`, loaded if need be, which stays loaded until the block is left.

        `keep_alive_s`: how long it stays afterwards; None leaves that as it is, infinity is for
        ever. Raises a PowerServeError for a model that is unknown, broken or does not fit.
        """
        source = await asyncio.to_thread(self.catalogue.find, name)
        entry = await self._wanted_entry(source)
        entry.num_users += 1
        entry.runner.names.add(name)
        if keep_alive_s is not None:
            entry.keep_alive_s = keep_alive_s
        try:
            yield entry.runner
        finally:
            entry.num_users -= 1
            entry.last_used = monotonic()

    async def unload(self, name: str) -> None:
        """Drop the model called `name`, if it is loaded, as soon as nobody uses it.

        Raises ApiError for a model that is unknown.
        """
        source = await asyncio.to_thread(self.catalogue.find, name)
        entry = self._loaded.get(_files(source))
        if entry is None:
            return
        entry.keep_alive_s = 0.0
        async with self._turn:
            if entry.is_expired and entry.files in self._loaded:
                await self._unload(entry)

    async def unload_idle(self) -> None:
        """Drop models whose time has come, for ever; cancel it to stop."""
        while True:
            await asyncio.sleep(_TICK_S)
            async with self._turn:
                for entry in list(self._loaded.values()):
                    if entry.is_expired:  # still, after the one before was unloaded
                        await self._unload(entry)

    async def close(self) -> None:
        """Unload everything, in use or not."""
        for task in list(self._loads.values()):
            with suppress(Exception):
                await task
        async with self._turn:
            for entry in list(self._loaded.values()):
                await self._unload(entry)

    async def _wanted_entry(self, source: ModelSource) -> _Loaded:
        """The entry of a model, which stays until the caller can take it.

        Else the next model to be loaded could throw it out before those who waited for it wake up;
        they would have it loaded again, and two models could do that to each other for ever.
        """
        files = _files(source)
        self._wanted[files] += 1
        try:
            return await self._entry(source)
        finally:
            self._wanted[files] -= 1

    async def _entry(self, source: ModelSource) -> _Loaded:
        files = _files(source)
        while True:
            entry = self._loaded.get(files)
            if entry is not None and entry.runner.failure is None:
                return entry
            task = self._loads.get(files)
            if task is None:
                task = self._loads[files] = asyncio.create_task(self._bring_in(files, source))
                task.add_done_callback(lambda done: self._load_ended(files, done))
            await asyncio.shield(task)  # whoever asked may leave: others may be waiting too

    def _load_ended(self, files: Files, task: asyncio.Task[_Loaded]) -> None:
        del self._loads[files]
        if not task.cancelled():
            task.exception()  # looked at, even if everyone who waited for it has gone

    async def _bring_in(self, files: Files, source: ModelSource) -> _Loaded:
        async with self._turn:
            broken = self._loaded.get(files)
            if broken is not None:
                await self._unload(broken)
            key = files, _file_size(source)
            await self._make_room(self._sizes.get(key, key[1]))
            loaded = await self._load_with_room(source)
            self._sizes[key] = loaded.plan.total_bytes
            try:
                await self._make_room(self._sizes[key])  # the first time, it was a guess
            except PowerServeError:
                await asyncio.to_thread(loaded.close)
                del loaded  # else the error's traceback would keep all of it for a while
                raise
            runner = ModelRunner(source.name, loaded, self._metrics, self._prefixes)
            self._loaded[files] = _Loaded(files, runner, self._limits.keep_alive_s)
            logger.info("loaded %s", source.name)
            return self._loaded[files]

    async def _load_with_room(self, source: ModelSource) -> LoadedEngine:
        """Load; if the machine's memory does not suffice, at the cost of models out of use."""
        while True:
            try:
                return await asyncio.to_thread(self._load, source)
            except MemoryLimitError:
                if not await self._unload_oldest():
                    raise

    async def _make_room(self, size_bytes: int) -> None:
        """Unload until there is room for so much more. Raises a PowerServeError."""
        limit = self._limits.memory_bytes
        if limit is None:
            return
        if size_bytes > limit:
            raise MemoryLimitError(
                f"the model takes {format_bytes(size_bytes)}, but this server may use "
                f"{format_bytes(limit)} for models (--memory-gib)"
            )
        while sum(entry.size_bytes for entry in self._loaded.values()) + size_bytes > limit:
            if not await self._unload_oldest():
                raise ApiError(
                    ErrorKind.OVERLOADED,
                    "there is no memory for another model while those that are loaded are in use",
                    retry_after_s=RETRY_AFTER_S,
                )

    async def _unload_oldest(self) -> bool:
        idle = [
            entry
            for entry in self._loaded.values()
            if not entry.num_users and not self._wanted[entry.files]
        ]
        if not idle:
            return False
        await self._unload(min(idle, key=lambda entry: entry.last_used))
        return True

    async def _unload(self, entry: _Loaded) -> None:
        del self._loaded[entry.files]
        await entry.runner.stop()
        logger.info("unloaded %s", entry.runner.name)


def _files(source: ModelSource) -> Files:
    return source.weights, source.draft.weights if source.draft else None


def _file_size(source: ModelSource) -> int:
    sources = (source, source.draft) if source.draft else (source,)
    return sum(each.weights.stat().st_size for each in sources)
