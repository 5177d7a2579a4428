"""A loaded model as the event loop sees it: generations are opened, read and given up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic

from powerserve.backend.base import FloatArray
from powerserve.cache.prefix_store import PrefixFolder
from powerserve.core.errors import PowerServeError
from powerserve.engine.loader import LoadedEngine
from powerserve.server.engine_thread import (
    Cancel,
    Command,
    Embed,
    EngineThread,
    Report,
    Start,
    Task,
)
from powerserve.server.events import Accepted, Embedded, Ended, Event, Failed, Piece, Prefilled
from powerserve.server.mailbox import Mailbox
from powerserve.server.metrics import Metrics


@dataclass(slots=True, eq=False)
class OpenGeneration:
    """One generation and how far it is; tells nothing of what it is about."""

    key: int
    model: str
    mailbox: Mailbox
    opened: float = field(default_factory=monotonic)
    num_prompt_tokens: int = 0
    num_prefilled: int = 0
    num_generated: int = 0
    is_accepted: bool = False

    def note(self, event: Event) -> None:
        """Take over what an event says about progress."""
        match event:
            case Accepted(num_prompt_tokens):
                self.num_prompt_tokens = num_prompt_tokens
                self.is_accepted = True
            case Prefilled(num_tokens):
                self.num_prefilled = num_tokens
            case Piece(num_tokens=num_tokens):
                self.num_prefilled = self.num_prompt_tokens
                self.num_generated += num_tokens


class ModelRunner:
    """The loop's end of an engine's thread. All methods belong to the loop's thread."""

    def __init__(
        self,
        name: str,
        loaded: LoadedEngine,
        metrics: Metrics,
        prefixes: PrefixFolder | None = None,
    ) -> None:
        """Prefixes are saved in `prefixes`, if that is given."""
        self.name = name
        self.loaded = loaded  # for its tokenizer and sizes; the engine itself is the thread's
        self.names = {name}  # by which clients have asked for it
        self.failure: PowerServeError | None = None
        self._metrics = metrics
        self._open: dict[int, OpenGeneration] = {}
        self._keys = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._thread = EngineThread(loaded, self._report, self._thread_ended, prefixes)
        self._thread.start()

    @property
    def generations(self) -> list[OpenGeneration]:
        """What is running or queued now."""
        return list(self._open.values())

    @contextmanager
    def open(self, tasks: Sequence[Task], arrived: asyncio.Event) -> Iterator[list[OpenGeneration]]:
        """Begin these; what has not ended when the block is left is cancelled.

        Each mailbox sets `arrived`.
        """
        opened = [self._begin(task, arrived) for task in tasks]
        try:
            yield opened
        finally:
            for generation in opened:
                self._give_up(generation)

    async def embed(self, token_ids: list[int]) -> FloatArray:
        """The embedding of a text, float32 [embed_dim]. Raises a PowerServeError."""
        arrived = asyncio.Event()
        text = self._enter(arrived)
        text.num_prompt_tokens = len(token_ids)
        self._send(text, Embed(text.key, token_ids))
        try:
            await arrived.wait()
        finally:
            self._give_up(text)
        match text.mailbox.take():
            case [Embedded(vector)]:
                return vector
            case [Failed(error)]:
                raise error
        raise AssertionError("an embedding has no other events")

    def end_all(self, reason: PowerServeError) -> None:
        """Cancel everything, telling whoever reads it why."""
        for generation in self.generations:
            self._thread.send(Cancel(generation.key))
        self._deliver([(key, Failed(reason)) for key in self._open])

    async def stop(self) -> None:
        """End everything and release the model."""
        await asyncio.to_thread(self._thread.stop)

    def _begin(self, task: Task, arrived: asyncio.Event) -> OpenGeneration:
        generation = self._enter(arrived)
        self._send(generation, Start(generation.key, task))
        return generation

    def _enter(self, arrived: asyncio.Event) -> OpenGeneration:
        generation = OpenGeneration(next(self._keys), self.name, Mailbox(arrived))
        self._open[generation.key] = generation
        return generation

    def _send(self, generation: OpenGeneration, command: Command) -> None:
        self._thread.send(command)
        if self.failure is not None:
            self._deliver([(generation.key, Failed(self.failure))])

    def _give_up(self, generation: OpenGeneration) -> None:
        if not generation.mailbox.is_complete:
            self._thread.send(Cancel(generation.key))
            # It stays in `_open` until the engine says that it has ended.

    def _report(self, report: Report) -> None:
        """In the engine's thread: hand a step's events over, all at once."""
        if report:
            self._post(lambda: self._deliver(report))

    def _thread_ended(self, reason: PowerServeError) -> None:
        self._post(lambda: self._fail(reason))

    def _post(self, action: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left who could be told
            self._loop.call_soon_threadsafe(action)

    def _deliver(self, report: Report) -> None:
        for key, event in report:
            generation = self._open.get(key)
            if generation is not None:
                self._take(generation, event)
        if any(isinstance(event, Piece | Prefilled) for _, event in report):
            self._metrics.count_step()

    def _take(self, generation: OpenGeneration, event: Event) -> None:
        generation.note(event)
        if not isinstance(event, Prefilled):  # nobody waits for that
            generation.mailbox.put(event)
        if isinstance(event, Ended | Failed | Embedded):
            del self._open[generation.key]
        if isinstance(event, Ended):
            self._metrics.count_generation(event)

    def _fail(self, reason: PowerServeError) -> None:
        self.failure = reason
        self._deliver([(key, Failed(reason)) for key in self._open])
