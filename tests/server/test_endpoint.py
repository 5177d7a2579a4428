"""How a request ends that neither side ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from powerserve.engine.loader import load_engine
from powerserve.server.catalogue import Catalogue
from powerserve.server.endpoint import Endpoint
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import ModelPool
from powerserve.server.openai.surface import openai_surface
from powerserve.server.serving import Serving
from powerserve.server.settings import ServerSettings
from powerserve.server.surface import Call, Events, Operation

SCOPE = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}


@pytest.mark.parametrize("is_stopping", [True, False])
def test_only_a_server_that_stops_gives_up_a_client_without_a_word(is_stopping: bool) -> None:
    """uvicorn cancels what is left then, and would log a traceback of that."""

    async def frames() -> AsyncIterator[bytes]:
        yield b"data: {}\n\n"

    async def handler(call: Call) -> Events:
        return Events(frames())

    async def receive() -> Message:
        return await asyncio.Future()  # the client stays

    async def run() -> None:
        is_blocked = asyncio.Event()

        async def send(message: Message) -> None:
            is_blocked.set()
            await asyncio.Future()  # and does not read

        settings, metrics = ServerSettings(), Metrics()
        pool = ModelPool(Catalogue(), load_engine, settings, metrics)
        serving = Serving(settings, pool, metrics)
        endpoint = Endpoint(openai_surface(serving), Operation("GET", "/", handler), serving)
        request = asyncio.create_task(endpoint(SCOPE, receive, send))
        await is_blocked.wait()
        serving.is_stopping = is_stopping
        request.cancel()
        await asyncio.wait({request})
        assert request.cancelled() is not is_stopping
        await serving.close()

    asyncio.run(run())
