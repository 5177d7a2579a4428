"""/api/pull: downloads into the store, where the operator allows them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from powerserve.server.daemon_executor import DaemonExecutor
from powerserve.server.errors import ApiError, ErrorKind, invalid
from powerserve.server.ollama.fields import LATEST
from powerserve.server.ollama.lines import CONTENT_TYPE, json_line
from powerserve.server.ollama.pull_report import PullReport
from powerserve.server.serving import Serving, stopping
from powerserve.server.surface import Call, Events, Reply
from powerserve.storage.builtin import ensure_builtin, find_builtin
from powerserve.storage.hub import pull
from powerserve.storage.store import ModelStore

_SUCCESS = {"status": "success"}


class PullRequest(msgspec.Struct):
    """The body; `name` is what older clients say."""

    model: str = ""
    name: str = ""
    stream: bool | None = None


class Pulls:
    """Downloads, one after the other."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._thread = DaemonExecutor(1, "pull")

    async def pull(self, call: Call) -> Reply | Events:
        """Fetch a model; the client's leaving ends that, and asking again continues it."""
        body = call.decode(PullRequest)
        store = self._store()
        reference = (body.model or body.name).removesuffix(LATEST)
        if not reference:
            raise invalid("model is missing: name one, such as owner/repo:Q4_K_M", "model")
        lines = self._lines(reference, store)
        if body.stream is not False:
            return Events(lines, CONTENT_TYPE)
        async with aclosing(lines):
            async for _ in lines:
                pass
        return Reply(_SUCCESS)

    def _store(self) -> ModelStore:
        """Where to put models. Raises ApiError where clients may not."""
        if not self._serving.settings.allow_pull:
            raise ApiError(
                ErrorKind.PERMISSION,
                "clients may not download models here; `powerserve pull` on the server does it, "
                "and the server's option --allow-pull lets clients do it",
            )
        store = self._serving.pool.catalogue.store
        if store is None:
            raise invalid("this server has one model and no other, so there is nothing to download")
        return store

    async def _lines(self, reference: str, store: ModelStore) -> AsyncGenerator[bytes]:
        report = PullReport()
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, _fetch, reference, store, report)
        work.add_done_callback(lambda done: _ended(done, report))
        try:
            yield json_line({"status": "pulling manifest"})
            with self._serving.at_end(report.close):
                async for line in report.lines():
                    yield json_line(line)
            if not work.done():
                raise stopping()
            await work
            yield json_line(_SUCCESS)
        finally:
            report.cancel()
            work.cancel()


def _ended(work: asyncio.Future[None], report: PullReport) -> None:
    if not work.cancelled():
        work.exception()  # looked at, even if its client has gone
    report.close()


def _fetch(reference: str, store: ModelStore, report: PullReport) -> None:
    if find_builtin(reference):
        ensure_builtin(reference, store, progress=report)
    else:
        pull(reference, store, progress=report)
