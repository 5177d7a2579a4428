"""Who may talk to the server: Host and Origin headers, API keys, cross-origin replies."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.settings import Access

_PREFLIGHT_HEADERS = {
    "access-control-allow-methods": "GET, POST, DELETE, OPTIONS",
    "access-control-max-age": "600",
}
MAX_HEAD_BYTES = 32 << 10  # of a request's head
_MAX_HEADERS = 200
Refuse = Callable[[str, ApiError], ASGIApp]  # path and error to an application that reports it


class Guard:
    """The rules, as functions of a request's headers."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._keys = [key.encode() for key in access.api_keys]
        self._hosts = {name.lower() for name in (access.host, *access.allowed_hosts)}

    def check(self, headers: Headers, *, is_public: bool) -> None:
        """Raise ApiError unless the request may pass; public paths need no key."""
        _check_size(headers)
        _check_framing(headers)
        self._check_host(headers.get("host", ""))
        origin = headers.get("origin")
        if origin is not None and not self.allows_origin(origin, headers.get("host", "")):
            raise ApiError(
                ErrorKind.PERMISSION,
                f"pages of {origin!r} may not use this server; --cors-origin would let them",
            )
        if self._keys and not is_public and not self._has_key(headers):
            raise ApiError(
                ErrorKind.AUTHENTICATION,
                "a valid API key is needed, in the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of `origin` may talk to us: our own, localhost's, and those asked for."""
        if "*" in self._access.cors_origins or origin in self._access.cors_origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        return parts.netloc == host or _is_local_name(name)

    def _check_host(self, host: str) -> None:
        """Refuse other names than our own where only this machine should reach us.

        A web page whose name is made to resolve to 127.0.0.1 could talk to us otherwise.
        """
        if not self._access.is_local and not self._access.allowed_hosts:
            return
        name = _host_name(host)
        if not _is_local_name(name) and name not in self._hosts:
            raise ApiError(
                ErrorKind.PERMISSION,
                f"this server does not answer to the name {name!r}; --allowed-host would let it",
            )

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, in constant time: how long it takes shall tell nothing.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        return any(matches)


class AccessControl:
    """ASGI middleware: what the guard refuses goes no further."""

    def __init__(
        self, app: ASGIApp, guard: Guard, public_paths: frozenset[str], refuse: Refuse
    ) -> None:
        self._app = app
        self._guard = guard
        self._public_paths = public_paths
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, answer preflights, and add CORS headers to replies."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        is_preflight = scope["method"] == "OPTIONS"
        is_public = is_preflight or scope["path"] in self._public_paths
        try:
            self._guard.check(headers, is_public=is_public)
        except ApiError as error:
            await self._refuse(scope["path"], error)(scope, receive, send)
            return
        sender = _with_cors(headers, send)
        if is_preflight:
            await _answer_preflight(headers, sender)
        else:
            await self._app(scope, receive, sender)


def _with_cors(headers: Headers, send: Send) -> Send:
    """A `send` that tells the browser that the page, whose origin was checked, may read this."""
    origin = headers.get("origin")
    if origin is None:
        return send

    async def send_with_origin(message: Message) -> None:
        if message["type"] == "http.response.start":
            reply = MutableHeaders(scope=message)
            reply["access-control-allow-origin"] = origin
            reply["vary"] = "Origin"
        await send(message)

    return send_with_origin


async def _answer_preflight(headers: Headers, send: Send) -> None:
    reply = dict(_PREFLIGHT_HEADERS)
    wanted = headers.get("access-control-request-headers")
    if wanted is not None:
        reply["access-control-allow-headers"] = wanted
    raw = [(name.encode(), value.encode("latin-1")) for name, value in reply.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})


def _check_size(headers: Headers) -> None:
    """Refuse what no client needs. h11 bounds only heads that do not arrive at once."""
    size = sum(len(name) + len(value) for name, value in headers.raw)
    if len(headers.raw) > _MAX_HEADERS or size > MAX_HEAD_BYTES:
        raise ApiError(
            ErrorKind.HEADERS_TOO_LARGE,
            f"a request has at most {_MAX_HEADERS} headers and {MAX_HEAD_BYTES:,} bytes of them",
        )


def _check_framing(headers: Headers) -> None:
    """Refuse a body whose length is given twice: a proxy might see two requests in it.

    Source: RFC 9112, section 6.1.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        raise ApiError(
            ErrorKind.INVALID_REQUEST,
            "a request has either the header Content-Length or Transfer-Encoding, not both",
        )


def _host_name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_local_name(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
