"""Errors in Ollama's shape."""

from __future__ import annotations

import msgspec

from powerserve.server.errors import ApiError

NOT_FOUND = "model not found"  # words that clients look for


def error_body(error: ApiError) -> dict[str, str]:
    """An error's body."""
    message = error.message
    if error.code == "model_not_found":
        message = f"{NOT_FOUND}: {message}"
    return {"error": message}


def error_frame(error: ApiError) -> bytes:
    """An error in the middle of a stream, which the official client raises."""
    return msgspec.json.encode(error_body(error)) + b"\n"
