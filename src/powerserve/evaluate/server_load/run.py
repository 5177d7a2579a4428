"""Many chats at once: clients that ask again and again, or arrivals at random times."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from powerserve.core.errors import UsageError
from powerserve.evaluate.server_load.chat_request import ChatRecord, timed_chat
from powerserve.evaluate.server_load.plan import LoadPlan
from powerserve.evaluate.server_load.prompts import chat_body
from powerserve.evaluate.server_load.target import Target
from powerserve.storage.progress import Advance

_PAUSE_AFTER_ERROR_S = 0.1  # a server that refuses everything shall not be asked in a tight loop


async def check_target(target: Target, timeout_s: float) -> None:
    """Ask for one token. Raises UsageError that says why the server gives none."""
    plan = LoadPlan(prompt_words=1, max_tokens=1)
    record = await timed_chat(target, chat_body(plan, 0, target.model), timeout_s)
    if record.error is not None:
        reason = ": ".join(filter(None, (record.error, record.detail)))
        raise UsageError(f"{target.url} does not answer a chat: {reason}")


@dataclass(slots=True)
class LoadRun:
    """One measurement of one server. What is recorded stays if `execute` is cancelled."""

    target: Target
    plan: LoadPlan
    advance: Advance = lambda count: None  # called after each request
    records: list[ChatRecord] = field(default_factory=list)
    began_s: float = 0.0
    ended_s: float = 0.0
    is_stopped: bool = False

    async def execute(self) -> None:
        """Warm up, then measure."""
        await self._warm_up()
        self.began_s = perf_counter()
        try:
            if self.plan.rate is None:
                await self._closed_loop()
            else:
                await self._open_loop(self.plan.rate)
        finally:
            self.ended_s = perf_counter()

    def stop(self) -> None:
        """Begin no more requests; those that run come to their end."""
        self.is_stopped = True

    async def _warm_up(self) -> None:
        indices = iter(range(-self.plan.num_warm_up, 0))
        await _together(self.plan.num_clients, lambda: self._ask_all(indices, is_warm_up=True))

    async def _closed_loop(self) -> None:
        """Each client asks as soon as it has its answer; the last answers may overlap less."""
        indices = self._indices()
        await _together(self.plan.num_clients, lambda: self._ask_all(indices))

    async def _open_loop(self, rate: float) -> None:
        """Requests come whether or not earlier ones are answered, at exponential distances."""
        chance = random.Random(self.plan.seed)
        async with asyncio.TaskGroup() as running:
            for index in self._indices():
                if self._is_over():
                    break
                running.create_task(self._ask(index))
                await asyncio.sleep(chance.expovariate(rate))

    async def _ask_all(self, indices: Iterator[int], *, is_warm_up: bool = False) -> None:
        for index in indices:
            if not is_warm_up and self._is_over():
                break
            await self._ask(index, is_warm_up=is_warm_up)

    async def _ask(self, index: int, *, is_warm_up: bool = False) -> None:
        body = chat_body(self.plan, index, self.target.model)
        record = await timed_chat(self.target, body, self.plan.timeout_s)
        if not is_warm_up:
            self.records.append(record)
            self.advance(1)
        if record.error is not None:
            await asyncio.sleep(_PAUSE_AFTER_ERROR_S)

    def _indices(self) -> Iterator[int]:
        limit = self.plan.num_requests
        return iter(range(limit)) if limit is not None else itertools.count()

    def _is_over(self) -> bool:
        limit_s = self.plan.duration_s
        is_late = limit_s is not None and perf_counter() - self.began_s >= limit_s
        return is_late or self.is_stopped


def interleaved(
    targets: Sequence[Target], plan: LoadPlan, num_rounds: int, advance: Advance
) -> list[LoadRun]:
    """Runs that take turns, each round with new prompts and the other order.

    What slows the machine down for a while then meets all servers alike.
    """
    runs = []
    for number in range(num_rounds):
        order = targets if number % 2 == 0 else targets[::-1]
        of_round = replace(plan, seed=plan.seed + number)
        runs += [LoadRun(target, of_round, advance) for target in order]
    return runs


async def _together(count: int, work: Callable[[], Awaitable[None]]) -> None:
    async def do() -> None:
        await work()

    async with asyncio.TaskGroup() as running:
        for _ in range(count):
            running.create_task(do())
