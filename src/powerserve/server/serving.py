"""From a request to its answer: is there room, which model, what prompt, then the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import ParamSpec, TypeVar

from powerserve.backend.base import FloatArray
from powerserve.engine.engine import CacheUse
from powerserve.server.answer import Answer
from powerserve.server.daemon_executor import DaemonExecutor
from powerserve.server.errors import ApiError, ErrorKind, invalid
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import RETRY_AFTER_S, ModelPool
from powerserve.server.preparation import encode_texts, prepare
from powerserve.server.request import GenerationRequest, TextPrompt, TokenPrompt
from powerserve.server.settings import ServerSettings

P = ParamSpec("P")
T = TypeVar("T")
_PROMPT_THREADS = 2


class Serving:
    """What all API families share."""

    def __init__(self, settings: ServerSettings, pool: ModelPool, metrics: Metrics) -> None:
        self.settings = settings
        self.pool = pool
        self.metrics = metrics
        self.is_stopping = False
        self.num_admitted = 0  # generations
        self._at_end: list[Callable[[], None]] = []
        # Templates are programs of strangers, and prompts can be long: not for the event loop.
        self._prompt_workers = DaemonExecutor(_PROMPT_THREADS, "prompt")
        metrics.watch("llamacpp:requests_processing", "Generations now", self._num_processing)
        metrics.watch("llamacpp:requests_deferred", "Generations that wait", self._num_deferred)
        self._watch_cells()
        metrics.watch(
            "powerserve:tasks", "Tasks of the event loop", lambda: len(asyncio.all_tasks())
        )

    @asynccontextmanager
    async def answer(self, request: GenerationRequest) -> AsyncIterator[Answer]:
        """Have a request answered; it is cancelled if the block is left before its end.

        Inside the block the engine has taken the request, so that what can be refused has been.
        Raises a PowerServeError.
        """
        with self._admitted(request.num_generations):
            lease = self.pool.lease(request.model, keep_alive_s=request.keep_alive_s)
            async with lease as runner:
                prepared = await self.in_worker(
                    prepare, runner.loaded, request, self.settings.limits.max_tokens
                )
                arrived = asyncio.Event()
                with runner.open(prepared.tasks, arrived) as generations:
                    answer = Answer(runner, generations, arrived, prepared.parsers)
                    await answer.accepted()
                    yield answer

    async def embed(
        self,
        model: str,
        texts: Sequence[TextPrompt | TokenPrompt],
        *,
        truncate: bool = False,
        keep_alive_s: float | None = None,
    ) -> tuple[list[FloatArray], int]:
        """A vector, float32 [embed_dim], for each text, and the number of tokens of all of them.

        With `truncate` only the beginning counts of texts that are too long. Raises a
        PowerServeError.
        """
        with self._admitted(1):
            async with self.pool.lease(model, keep_alive_s=keep_alive_s) as runner:
                encoded = await self.in_worker(
                    encode_texts, runner.loaded, texts, truncate=truncate
                )
                vectors = [await runner.embed(token_ids) for token_ids in encoded]
        return vectors, sum(map(len, encoded))

    async def in_worker(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that takes long, about prompts, in a thread made for that."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prompt_workers, lambda: function(*args, **kwargs))

    @contextmanager
    def at_end(self, action: Callable[[], None]) -> Iterator[None]:
        """Have `action` called if `end_all` comes before the block is left."""
        self._at_end.append(action)
        try:
            yield
        finally:
            self._at_end.remove(action)

    def end_all(self) -> None:
        """Cancel every running answer, telling its reader why."""
        for runner in self.pool.runners:
            runner.end_all(stopping())
        for action in list(self._at_end):
            action()

    async def close(self) -> None:
        """Unload the models and end the threads."""
        self.is_stopping = True
        await self.pool.close()
        self._prompt_workers.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        """Count the generations in. Raises ApiError where there are too many."""
        limits = self.settings.limits
        room = limits.max_running + limits.max_queued
        if count > room:
            raise invalid(f"n must be at most {room} here, not {count}", "n")
        if self.is_stopping:
            raise stopping()
        if self.num_admitted + count > room:
            raise _unavailable("the server has as many requests as it can take; try again later")
        self.num_admitted += count
        try:
            yield
        finally:
            self.num_admitted -= count

    def _watch_cells(self) -> None:
        """Add gauges of the KV caches of all loaded models together."""

        def total(part: Callable[[CacheUse], int]) -> Callable[[], float]:
            return lambda: sum(part(each.loaded.engine.cache_use) for each in self.pool.runners)

        watch = self.metrics.watch
        watch("powerserve:kv_cells", "Tokens that fit", total(lambda use: use.num_cells))
        watch("powerserve:kv_cells_taken", "Tokens in there", total(lambda use: use.num_taken))
        watch(
            "powerserve:kv_cells_kept",
            "Tokens in there that belong to prefixes, which give way",
            total(lambda use: use.num_kept),
        )

    def _num_processing(self) -> float:
        return sum(
            bool(each.num_prefilled) for runner in self.pool.runners for each in runner.generations
        )

    def _num_deferred(self) -> float:
        return self.num_admitted - self._num_processing()


def stopping() -> ApiError:
    """The error for whatever cannot be finished any more."""
    return _unavailable("the server is stopping")


def _unavailable(message: str) -> ApiError:
    return ApiError(ErrorKind.OVERLOADED, message, retry_after_s=RETRY_AFTER_S)
