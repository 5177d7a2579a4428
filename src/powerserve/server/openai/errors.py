"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.surface import sse_frame

_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication_error",
    ErrorKind.PERMISSION: "permission_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.INTERNAL: "server_error",
    ErrorKind.OVERLOADED: "unavailable_error",
    ErrorKind.TIMEOUT: "timeout_error",
}


def error_type(error: ApiError) -> str:
    """OpenAI's word for a kind of error; the original used the same ones."""
    return _TYPES.get(error.kind, "invalid_request_error")


def error_body(error: ApiError) -> dict[str, Any]:
    """An error's body."""
    return {
        "error": {
            "message": error.message,
            "type": error_type(error),
            "param": error.param,
            "code": error.code,
        }
    }


def error_frame(error: ApiError) -> bytes:
    """An error in the middle of a stream, which the official client raises."""
    return sse_frame(error_body(error))
