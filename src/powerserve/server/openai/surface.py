"""OpenAI's routes and errors."""

from __future__ import annotations

from functools import partial
from typing import Any

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.openai.chat import chat_completions
from powerserve.server.openai.models import list_models, show_model
from powerserve.server.serving import Serving
from powerserve.server.surface import Operation, Surface, sse_frame

_TYPES = {
    ErrorKind.AUTHENTICATION: "authentication_error",
    ErrorKind.PERMISSION: "permission_error",
    ErrorKind.NOT_FOUND: "not_found_error",
    ErrorKind.INTERNAL: "server_error",
    ErrorKind.OVERLOADED: "unavailable_error",
    ErrorKind.TIMEOUT: "timeout_error",
}


def openai_surface(serving: Serving) -> Surface:
    """The family; each path exists with and without /v1, as in the original."""
    chat = partial(chat_completions, serving)
    return Surface(
        "openai",
        (
            Operation("POST", "/v1/chat/completions", chat),
            Operation("POST", "/chat/completions", chat),
            Operation("GET", "/v1/models", partial(list_models, serving)),
            Operation("GET", "/v1/models/{name:path}", partial(show_model, serving)),
        ),
        error_body,
        error_frame,
    )


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
