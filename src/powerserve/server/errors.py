"""Errors as a client gets them; each API family words their body in its own shape."""

from __future__ import annotations

import logging
from enum import Enum

from powerserve.core.errors import (
    ContextLengthError,
    MemoryLimitError,
    ModelNotFoundError,
    PowerServeError,
    TemplateError,
    TokenizerError,
    UsageError,
)

logger = logging.getLogger("powerserve.server")

INTERNAL = "something went wrong inside the server; its log says what"


class ErrorKind(Enum):
    """What kind of thing went wrong; the value is the HTTP status."""

    INVALID_REQUEST = 400
    AUTHENTICATION = 401
    PERMISSION = 403
    NOT_FOUND = 404
    METHOD = 405
    SLOW_BODY = 408
    TOO_LARGE = 413
    MEDIA_TYPE = 415
    HEADERS_TOO_LARGE = 431
    INTERNAL = 500
    OVERLOADED = 503
    TIMEOUT = 504


class ApiError(PowerServeError):
    """An error with all that an answer to the client needs."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        """`param` is the field at fault, `code` a fixed word for programs."""
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.kind.value


def invalid(message: str, param: str | None = None) -> ApiError:
    """The error for a request that can never work."""
    return ApiError(ErrorKind.INVALID_REQUEST, message, param=param)


def as_api_error(error: Exception) -> ApiError:
    """What to tell the client about any exception; unexpected ones are logged."""
    code: str | None = None
    match error:
        case ApiError():
            return error
        case ContextLengthError():
            kind, code = ErrorKind.INVALID_REQUEST, "context_length_exceeded"
        case UsageError() | TemplateError() | TokenizerError():
            kind = ErrorKind.INVALID_REQUEST
        case ModelNotFoundError():
            kind, code = ErrorKind.NOT_FOUND, "model_not_found"
        case MemoryLimitError():
            kind, code = ErrorKind.OVERLOADED, "out_of_memory"
        case PowerServeError():
            kind = ErrorKind.INTERNAL
        case _:
            logger.error("unexpected error", exc_info=error)
            return ApiError(ErrorKind.INTERNAL, INTERNAL)
    return ApiError(kind, str(error), code=code)
