"""From a request to its answer: is there room, which model, what prompt, then the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import ParamSpec, TypeVar

from powerserve.core.errors import TemplateError
from powerserve.engine.loader import LoadedEngine
from powerserve.sampler.params import SamplingParams
from powerserve.server.answer import Answer
from powerserve.server.content import PlainText
from powerserve.server.errors import ApiError, ErrorKind, invalid
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import RETRY_AFTER_S, ModelPool
from powerserve.server.model_runner import Task
from powerserve.server.request import ChatPrompt, GenerationRequest, Prompt, TextPrompt
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
        # Templates are programs of strangers, and prompts can be long: not for the event loop.
        self._prompt_workers = ThreadPoolExecutor(_PROMPT_THREADS, "prompt")
        metrics.watch("llamacpp:requests_processing", "Generations now", self._num_processing)
        metrics.watch("llamacpp:requests_deferred", "Generations that wait", self._num_deferred)

    @asynccontextmanager
    async def answer(self, request: GenerationRequest) -> AsyncIterator[Answer]:
        """Have a request answered; it is cancelled if the block is left before its end.

        Inside the block the engine has taken the request, so that what can be refused has been.
        Raises a PowerServeError.
        """
        with self._admitted(request.num_generations):
            async with self.pool.lease(request.model) as runner:
                tasks = await self.in_worker(
                    make_tasks, runner.loaded, request, self.settings.limits.max_tokens
                )
                arrived = asyncio.Event()
                with runner.open(tasks, arrived) as generations:
                    answer = Answer(runner, generations, arrived, PlainText)
                    await answer.accepted()
                    yield answer

    async def in_worker(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that takes long, about prompts, in a thread made for that."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._prompt_workers, lambda: function(*args, **kwargs))

    def end_all(self) -> None:
        """Cancel every running answer, telling its reader why."""
        for runner in self.pool.runners:
            runner.end_all(_unavailable("the server is stopping"))

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
            raise _unavailable("the server is stopping")
        if self.num_admitted + count > room:
            raise _unavailable("the server has as many requests as it can take; try again later")
        self.num_admitted += count
        try:
            yield
        finally:
            self.num_admitted -= count

    def _num_processing(self) -> float:
        return sum(
            bool(each.num_prefilled) for runner in self.pool.runners for each in runner.generations
        )

    def _num_deferred(self) -> float:
        return self.num_admitted - self._num_processing()


def default_params(loaded: LoadedEngine) -> SamplingParams:
    """What a request gets that asks for nothing: its workspace's hparams, else our defaults."""
    hparams = loaded.source.hparams
    return SamplingParams() if hparams is None else SamplingParams.from_hparams(hparams.sampler)


def make_tasks(
    loaded: LoadedEngine, request: GenerationRequest, max_tokens: int | None
) -> list[Task]:
    """What the engine has to do for a request; may take long. Raises a PowerServeError.

    Choices of a prompt are neighbours. `max_tokens` is the server's limit.
    """
    all_params = request.params(default_params(loaded), max_tokens)
    start = None if request.grammar is None else loaded.grammars.compile(request.grammar)
    return [
        Task(prompt, params, None if start is None else start.copy())
        for prompt in [encode_prompt(loaded, each) for each in request.prompts]
        for params in all_params
    ]


def encode_prompt(loaded: LoadedEngine, prompt: Prompt) -> list[int]:
    """The token ids of a prompt. Raises a PowerServeError."""
    if isinstance(prompt, ChatPrompt):
        return _encode_chat(loaded, prompt)
    if isinstance(prompt, TextPrompt):
        return loaded.tokenizer.encode(prompt.text)
    return list(prompt.token_ids)


def _encode_chat(loaded: LoadedEngine, prompt: ChatPrompt) -> list[int]:
    if loaded.template is None:
        raise TemplateError(
            f"the model {loaded.source.name} has no chat template; use completions instead"
        )
    return loaded.template.encode(prompt.messages, tools=prompt.tools or None, **prompt.variables)


def _unavailable(message: str) -> ApiError:
    return ApiError(ErrorKind.OVERLOADED, message, retry_after_s=RETRY_AFTER_S)
