"""Reading a request's body: JSON only, not too large, not too slowly."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.settings import Access
from powerserve.server.surface import JSON_TYPE


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
