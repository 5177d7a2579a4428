"""Errors in Anthropic's shape."""

from __future__ import annotations

from typing import Any

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.surface import sse_frame

_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication_error",
    ErrorKind.PERMISSION: "permission_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.TOO_LARGE: "request_too_large",
    ErrorKind.INTERNAL: "api_error",
    ErrorKind.OVERLOADED: "overloaded_error",
    ErrorKind.TIMEOUT: "timeout_error",
}

STATUSES = {ErrorKind.OVERLOADED: 529}
"""What Anthropic has instead of HTTP's own (its documentation, Errors); clients retry both."""


def error_body(error: ApiError) -> dict[str, Any]:
    """An error's body."""
    kind = _TYPES.get(error.kind, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_frame(error: ApiError) -> bytes:
    """An error in the middle of a stream, which the official client raises."""
    return sse_frame(error_body(error), "error")
