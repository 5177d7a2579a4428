"""All clients together, and what is left of the server when they have gone."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from time import monotonic

from powerserve.evaluate.server_soak import asking, misbehaving
from powerserve.evaluate.server_soak.families import WrongAnswer
from powerserve.evaluate.server_soak.http_client import Connection, ConnectionLost
from powerserve.evaluate.server_soak.hub import endless_hub
from powerserve.evaluate.server_soak.plan import SoakPlan
from powerserve.evaluate.server_soak.process import Footprint, ServerProcess
from powerserve.evaluate.server_soak.questions import questions
from powerserve.evaluate.server_soak.setting import Setting
from powerserve.evaluate.server_soak.state import ServerState, wait_for_rest
from powerserve.evaluate.server_soak.truths import find_truths
from powerserve.storage.progress import Progress

_PATIENCE_S = 120.0
_PAUSE_AFTER_REFUSAL_S = 0.2
_SAMPLE_S = 1.0
_REUSE = 0.85  # the chance that a polite client keeps its connection for another request
_RUDENESS = 0.75  # the chance that a client does something rude instead of connecting politely
_MAX_PROBLEMS = 100  # kept

Polite = Callable[[Setting, Connection, random.Random], Awaitable[str]]
Rude = Callable[[Setting, random.Random], Awaitable[str]]
_POLITE: dict[Polite, int] = {
    asking.ask: 44,
    asking.embed: 4,
    asking.count: 2,
    asking.tokenize: 2,
    asking.look: 4,
}
_RUDE: dict[Rude, int] = {
    misbehaving.leave: 14,
    misbehaving.talk_nonsense: 14,
    misbehaving.read_slowly: 3,
    misbehaving.write_slowly: 4,
    misbehaving.ignore: 2,
    misbehaving.send_too_much: 2,
    misbehaving.send_no_http: 4,
    misbehaving.pull_and_leave: 2,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that should not have been."""

    at_s: float
    action: str
    text: str


@dataclass(slots=True)
class SoakResult:
    """What came of a run."""

    plan: SoakPlan
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by action and outcome
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    samples: list[tuple[float, Footprint]] = field(default_factory=list)  # by seconds
    before: ServerState | None = None
    after: ServerState | None = None
    exit_status: int | None = None
    log: str = ""


async def soak(result: SoakResult, progress: Progress) -> None:
    """Run what `result` has the plan of; what is in it stays if this is cancelled.

    Raises UsageError if the server does not start.
    """
    plan = result.plan
    with tempfile.TemporaryDirectory() as folder:
        async with endless_hub() as hub:
            server = await ServerProcess.start(
                plan.flags, _environment(Path(folder), hub), Path(folder) / "log"
            )
            try:
                await _Soak(result, server, progress).execute()
            finally:
                result.exit_status = await server.stop()
                result.log = server.log()


def _environment(folder: Path, hub: str) -> dict[str, str]:
    """The hub is ours, and nothing comes into the user's store."""
    return {
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "POWERSERVE_HOME": str(folder / "store"),
        "NO_PROXY": "127.0.0.1",
    }


class _Soak:
    """A run in progress."""

    def __init__(self, result: SoakResult, server: ServerProcess, progress: Progress) -> None:
        self._result = result
        self._plan = result.plan
        self._server = server
        self._progress = progress
        self._began = monotonic()
        self._setting = Setting(server, self._plan, questions(), {}, self._plan.models[0])

    async def execute(self) -> None:
        """Learn the truths, let the clients loose, and look at what remains."""
        before = await self._learn(max_tasks=inf)
        self._result.before = before
        self._began = monotonic()
        async with asyncio.TaskGroup() as background:
            tasks = [
                background.create_task(each) for each in (self._change_favourite(), self._watch())
            ]
            async with asyncio.TaskGroup() as clients:
                for index in range(self._plan.num_clients):
                    clients.create_task(self._client(index))
            for task in tasks:
                task.cancel()
        self._result.after = await self._learn(max_tasks=before.num_tasks)

    async def _learn(self, max_tasks: float) -> ServerState:
        """Every model's truths, which must be the known ones, and the state at rest.

        The first model is loaded then.
        """
        async with self._setting.connected() as connection:
            for model in reversed(self._plan.models):
                truths = await find_truths(connection, model, self._setting.questions)
                known = self._setting.truths.setdefault(model, truths)
                if not known.agree(truths):
                    self._note("at rest", f"{model} does not answer as before")
            return await wait_for_rest(self._server, connection, max_tasks)

    async def _change_favourite(self) -> None:
        """Let most clients ask another model every few seconds."""
        chance = random.Random(f"{self._plan.seed} favourite")
        while True:
            await asyncio.sleep(chance.uniform(*self._plan.phase_s))
            self._setting.favourite = chance.choice(self._plan.models)

    async def _watch(self) -> None:
        """Note what the server takes of the machine, and show how far the run is."""
        duration_s = max(1, round(self._plan.duration_s))
        with self._progress.count("seconds", duration_s) as advance:
            for _ in range(duration_s):
                self._result.samples.append((self._elapsed_s, self._server.footprint()))
                await asyncio.sleep(_SAMPLE_S)
                advance(1)

    async def _client(self, index: int) -> None:
        chance = random.Random(f"{self._plan.seed} {index}")
        while self._is_on:
            await self._session(chance)

    async def _session(self, chance: random.Random) -> None:
        """Something rude, or polite requests one after the other on a connection."""
        if chance.random() < _RUDENESS:
            (rude,) = chance.choices(tuple(_RUDE), tuple(_RUDE.values()))
            await self._attempt(rude.__name__, rude(self._setting, chance))
            return
        try:
            async with self._setting.connected() as connection:
                while await self._ask(connection, chance) and chance.random() < _REUSE:
                    pass
        except ConnectionLost as error:
            self._note("connect", str(error))

    async def _ask(self, connection: Connection, chance: random.Random) -> bool:
        """Whether the connection can be used for more."""
        (polite,) = chance.choices(tuple(_POLITE), tuple(_POLITE.values()))
        went_well = await self._attempt(polite.__name__, polite(self._setting, connection, chance))
        return went_well and connection.is_reusable and self._is_on

    async def _attempt(self, name: str, action: Awaitable[str]) -> bool:
        """Whether it went as it should."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                outcome = await action
        except (WrongAnswer, ConnectionLost, TimeoutError) as error:
            self._note(name, f"{type(error).__name__}: {error}")
            return False
        self._result.outcomes[name, outcome] += 1
        if outcome == asking.REFUSED:
            await asyncio.sleep(_PAUSE_AFTER_REFUSAL_S)
        return True

    def _note(self, action: str, text: str) -> None:
        self._result.num_problems += 1
        if len(self._result.problems) < _MAX_PROBLEMS:
            self._result.problems.append(Problem(self._elapsed_s, action, text))

    @property
    def _is_on(self) -> bool:
        return self._elapsed_s < self._plan.duration_s and self._server.is_running()

    @property
    def _elapsed_s(self) -> float:
        return monotonic() - self._began
