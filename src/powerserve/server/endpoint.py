"""One route as an ASGI application: body in, reply out, and everything that can go wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from powerserve.server.body import read_body
from powerserve.server.errors import ApiError, ErrorKind, as_api_error
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Operation, Reply, Surface

access_log = logging.getLogger("powerserve.access")  # never what a request is about

_LAST_WORDS_S = 5.0  # for an error to reach a client that may not read


class Endpoint:
    """Answers the requests of one operation."""

    def __init__(self, surface: Surface, operation: Operation, serving: Serving) -> None:
        self._surface = surface
        self._operation = operation
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then answer as long as the client is there."""
        began = monotonic()
        response = _Response(send)
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._serving.settings.access)
        except ApiError as error:
            await self._report(response, error)
        else:
            call = Call(body, request.path_params, request.query_params, request.headers)
            await self._until_disconnect(receive, self._answer(call, response))
        self._serving.metrics.count_request(self._operation.path, response.status)
        access_log.info(
            "%s %s %d %.0f ms",
            self._operation.method,
            self._operation.path,
            response.status,
            1000 * (monotonic() - began),
        )

    async def _until_disconnect(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, but cancel it the moment the client leaves."""
        task = asyncio.create_task(work)
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if not self._serving.is_stopping:
                raise
            # By uvicorn: a client that does not read what it was told last is not waited for.
        finally:
            task.cancel()
            gone.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)

    async def _answer(self, call: Call, response: _Response) -> None:
        limit_s = self._serving.settings.limits.request_timeout_s
        try:
            async with asyncio.timeout(limit_s if self._operation.is_timed else None):
                await response.send(await self._operation.handler(call))
        except TimeoutError:
            message = f"the request took longer than {limit_s:g} seconds, which is the limit here"
            await self._report(response, ApiError(ErrorKind.TIMEOUT, message))
        except Exception as error:
            await self._report(response, as_api_error(error))

    async def _report(self, response: _Response, error: ApiError) -> None:
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                if response.has_begun:
                    await response.end_with(self._surface.error_frame(error))
                else:
                    await response.send(error_reply(self._surface, error))
        except (TimeoutError, OSError):
            pass  # it does not read, or has gone


def error_reply(surface: Surface, error: ApiError) -> Reply:
    """An error in the family's own shape."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.kind is ErrorKind.AUTHENTICATION:
        headers["www-authenticate"] = "Bearer"
    return Reply(surface.error_body(error), surface.status(error), headers=headers)


class _Response:
    """Sends one HTTP response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 499  # as nginx logs a client that left; replaced when the response begins
        self.has_begun = False

    async def send(self, reply: Reply | Events) -> None:
        if isinstance(reply, Events):
            await self._stream(reply)
            return
        body = reply.encoded()
        await self._begin(reply.status, reply.content_type, dict(reply.headers), len(body))
        await self._body(body, more=False)

    async def end_with(self, frame: bytes) -> None:
        await self._body(frame, more=False)

    async def _stream(self, events: Events) -> None:
        frames: Any = events.frames  # an async generator: it has `aclose`
        async with aclosing(frames):
            async for frame in frames:
                if not self.has_begun:
                    # Proxies shall pass each event on at once.
                    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
                    await self._begin(200, events.content_type, headers)
                await self._body(frame, more=True)
        await self._body(b"", more=False)

    async def _begin(
        self, status: int, content_type: str, headers: dict[str, str], length: int | None = None
    ) -> None:
        headers["content-type"] = content_type
        if length is not None:
            headers["content-length"] = str(length)
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.status = status
        self.has_begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, content: bytes, *, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": more})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
