"""What an API family consists of, and what passes between a route and the code behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from powerserve.server.errors import ApiError, ErrorKind, invalid

T = TypeVar("T")
JSON_TYPE = "application/json"
EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Call:
    """A request as a handler gets it."""

    body: bytes
    path: Mapping[str, str] = field(default_factory=dict)  # parameters in the path
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case

    def decode(self, kind: type[T]) -> T:
        """The body as a msgspec struct. Raises ApiError naming the field at fault."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except msgspec.ValidationError as error:
            raise _wrong_field(str(error)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise invalid(f"the body is not valid JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. `value` is bytes, sent as they are, or anything msgspec writes as JSON."""

    value: Any
    status: int = 200
    content_type: str = JSON_TYPE
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        """The body's bytes."""
        return self.value if isinstance(self.value, bytes) else msgspec.json.encode(self.value)


@dataclass(frozen=True, slots=True)
class Events:
    """An answer in pieces. Nothing is sent before the first frame: until then errors have a status.

    `frames` is closed when the client has gone.
    """

    frames: AsyncIterator[bytes]
    content_type: str = EVENT_STREAM


Handler = Callable[[Call], Awaitable[Reply | Events]]


@dataclass(frozen=True, slots=True)
class Operation:
    """A method and path, and what to do."""

    method: str
    path: str  # as starlette writes it: /api/{name}
    handler: Handler
    is_public: bool = False  # needs no API key
    header: str | None = None  # only for requests that carry this header
    is_timed: bool = True  # ends when the time for a request is over


@dataclass(frozen=True, slots=True)
class Surface:
    """An API family."""

    name: str
    operations: tuple[Operation, ...]
    error_body: Callable[[ApiError], Any]
    error_frame: Callable[[ApiError], bytes]  # for a stream that has begun
    statuses: Mapping[ErrorKind, int] = field(default_factory=dict)  # where it has its own

    def status(self, error: ApiError) -> int:
        """The HTTP status of an error."""
        return self.statuses.get(error.kind, error.status)


def sse_frame(value: Any, event: str | None = None) -> bytes:
    """One server-sent event with `value` as JSON."""
    data = b"data: " + msgspec.json.encode(value) + b"\n\n"
    return data if event is None else b"event: " + event.encode() + b"\n" + data


def _wrong_field(message: str) -> ApiError:
    """Turn msgspec's "Expected `int`, got `str` - at `$.a.b`" into a sentence about `a.b`."""
    problem, _, place = message.partition(" - at ")
    param = place.strip("`").removeprefix("$").removeprefix(".") or None
    problem = problem[:1].lower() + problem[1:]
    return invalid(f"the field `{param}` is wrong: {problem}" if param else problem, param)
