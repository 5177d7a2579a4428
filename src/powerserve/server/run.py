"""The server's process: listening, the ready line, signals, stopping."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from powerserve.core.errors import UsageError
from powerserve.server.app import create_app
from powerserve.server.catalogue import Catalogue
from powerserve.server.connection import Connection
from powerserve.server.metrics import Metrics
from powerserve.server.model_pool import Loader, ModelPool
from powerserve.server.security import MAX_HEAD_BYTES
from powerserve.server.serving import Serving
from powerserve.server.settings import Access, ServerSettings

# More than clients keep idle connections: one that is closed just when a request comes loses it.
_KEEP_ALIVE_S = 100
_POLL_S = 0.05


def run_server(
    settings: ServerSettings, catalogue: Catalogue, load: Loader, preload: str | None = None
) -> None:
    """Serve until a signal asks to stop. Raises a PowerServeError if that cannot begin.

    `preload` is the name of a model to load before the server is ready.
    """
    listener = _listen(settings.access)
    asyncio.run(_serve(settings, catalogue, load, preload, listener))


async def _serve(
    settings: ServerSettings,
    catalogue: Catalogue,
    load: Loader,
    preload: str | None,
    listener: socket.socket,
) -> None:
    metrics = Metrics()
    pool = ModelPool(catalogue, load, settings, metrics)
    serving = Serving(settings, pool, metrics)
    idle = asyncio.create_task(pool.unload_idle())
    try:
        server = _Server(_config(create_app(serving), settings), serving)
        if preload is not None:
            async with pool.lease(preload):
                pass
        await server.serve([listener])
    finally:
        idle.cancel()
        with suppress(asyncio.CancelledError):
            await idle
        await serving.close()


class _Server(uvicorn.Server):
    """uvicorn's server, but it says when it is ready, and stops in two stages.

    At the first signal new requests get 503 and running ones may finish; at the second, or when the
    time for that is over, everything ends.
    """

    def __init__(self, config: uvicorn.Config, serving: Serving) -> None:
        super().__init__(config)
        self._serving = serving
        self._drain: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        print(
            f"powerserve is listening on {_url(self._serving.settings.access, sockets[0])}",
            flush=True,
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """In a signal handler, in the loop's thread."""
        if self._serving.is_stopping:
            self.should_exit = self.force_exit = True
            return
        self._serving.is_stopping = True

    async def on_tick(self, counter: int) -> bool:
        if self._serving.is_stopping and self._drain is None:
            self._drain = asyncio.create_task(self._finish_requests())
        return await super().on_tick(counter)

    async def _finish_requests(self) -> None:
        limit_s = self._serving.settings.limits.shutdown_timeout_s
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                while self._serving.num_admitted and not self.force_exit:
                    await asyncio.sleep(_POLL_S)
        self._serving.end_all()
        self.should_exit = True


def _config(app: ASGIApp, settings: ServerSettings) -> uvicorn.Config:
    """uvicorn's configuration, complete. Raises UsageError for TLS files that cannot be used."""
    tls = settings.access.tls
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"the certificate and key cannot be used: {error.strerror or error}"
        ) from None
    return config


def _listen(access: Access) -> socket.socket:
    """A listening socket, made before any model is loaded. Raises UsageError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UsageError(
            f"the server cannot listen on {access.host}, port {access.port}: "
            f"{error.strerror or error}; choose others with --host and --port"
        ) from None
    return listener


def _url(access: Access, listener: socket.socket) -> str:
    scheme = "https" if access.tls else "http"
    host = f"[{access.host}]" if ":" in access.host else access.host
    return f"{scheme}://{host}:{listener.getsockname()[1]}"
