"""A request's body: JSON only, not too large, not too slowly; and what becomes of the rest."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.settings import Access
from powerserve.server.surface import JSON_TYPE

_MAX_DISCARDED = 4  # times the largest body: more is nobody's mistake


async def read_body(request: Request, access: Access) -> bytes:
    """The whole body; empty for GET. Raises ApiError."""
    if request.method not in ("POST", "PUT", "PATCH", "DELETE"):
        return b""
    _check_length(request.headers.get("content-length"), access.max_body_bytes)
    try:
        async with asyncio.timeout(access.body_timeout_s):
            body = await _read(request, access.max_body_bytes)
    except TimeoutError:
        raise ApiError(ErrorKind.SLOW_BODY, "the body did not arrive in time") from None
    if body:
        _check_type(request.headers.get("content-type", ""))
    return body


async def _read(request: Request, limit: int) -> bytes:
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise _too_large(limit)
            pieces.append(piece)
    except ClientDisconnect:
        raise ApiError(ErrorKind.INVALID_REQUEST, "the body ended too early") from None
    return b"".join(pieces)


def _check_length(text: str | None, limit: int) -> None:
    if text is not None and text.isdecimal() and int(text) > limit:
        raise _too_large(limit)


def _check_type(content_type: str) -> None:
    """Only JSON: a web page can make a browser post other types to us without asking."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind != JSON_TYPE and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ApiError(
            ErrorKind.MEDIA_TYPE,
            f"the body must be JSON with the header `Content-Type: {JSON_TYPE}`, "
            f"not {kind or 'a body without a type'}",
        )


def _too_large(limit: int) -> ApiError:
    return ApiError(ErrorKind.TOO_LARGE, f"the body is larger than {limit:,} bytes")


class BodyFirst:
    """ASGI middleware: an answer waits for the body to come in, even one that nobody wants.

    Many clients send all of it before they look for an answer. If we answered and closed before
    that, they would find a broken connection and never learn why (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass all on; what the application has not read is thrown away, within bounds."""
        rest = _Rest(scope, receive, self._access)

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not await rest.discard():
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self._app(scope, rest.receive, send_after_body)


class _Rest:
    """What is still to come of a request's body."""

    def __init__(self, scope: Scope, receive: Receive, access: Access) -> None:
        self._receive = receive
        self._is_complete = False
        # Who expects `100 Continue` sends nothing before it has come.
        headers = Headers(scope=scope)
        self._is_held_back = "expect" in headers
        # Of a length that is given twice, nobody knows where it ends.
        self._is_doubtful = "transfer-encoding" in headers and "content-length" in headers
        self._limit = _MAX_DISCARDED * access.max_body_bytes
        self._deadline = asyncio.get_running_loop().time() + access.body_timeout_s

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_held_back = False
        if not message.get("more_body", False):  # or the client has gone
            self._is_complete = True
        return message

    async def discard(self) -> bool:
        """Read it; False if some of it is left, because it is too much or comes too late."""
        size = 0
        try:
            async with asyncio.timeout_at(self._deadline):
                while not self._is_complete and not self._is_held_back and size <= self._limit:
                    size += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
        return self._is_complete and not self._is_doubtful
