"""Routes of the chat page, and the headers that keep it from running anything but its own files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from powerserve.server.openai.errors import error_body, error_frame
from powerserve.server.surface import Call, Handler, Operation, Reply, Surface

STATIC = Path(__file__).parent / "static"
PAGE = "index.html"
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Should a model's text ever become markup, the browser would still load and run nothing.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def web_surface() -> Surface:
    """The page and its files. They need no key: the page itself asks for one."""
    return Surface("web", tuple(map(_operation, sorted(STATIC.iterdir()))), error_body, error_frame)


def _operation(file: Path) -> Operation:
    path = "/" if file.name == PAGE else f"/web/{file.name}"
    return Operation("GET", path, _handler(file), is_public=True)


def _handler(file: Path) -> Handler:
    """Answers with the file as it is now: it is read once."""
    reply = Reply(file.read_bytes(), content_type=CONTENT_TYPES[file.suffix], headers=HEADERS)

    async def send(call: Call) -> Reply:
        return reply

    return send
