"""Traces: what the engine does when, as Chrome's trace events.

Perfetto (https://ui.perfetto.dev) and chrome://tracing show such files. Source of the format: the
“Trace Event Format”, as a JSON array of complete (X), counter (C) and metadata (M) events.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter_ns
from typing import BinaryIO, Protocol

from powerserve.core.errors import UsageError

MAX_BYTES = 1 << 30
"""How large a trace may become: more than a million steps, and what viewers can still open."""

GENERATED_TOKENS = "#generated-token"
"""The counter of generated tokens, under the name that the original's traces give it."""

_OPENING = "[\n"
_BEGINNING = f'{_OPENING}{{"name":"process_name"'.encode()

logger = logging.getLogger("powerserve.trace")


class Tracer(Protocol):
    """Where spans of time and counters go."""

    def span(self, name: str, **details: int) -> AbstractContextManager[None]:
        """The time until the context ends, in the thread that began it."""
        ...

    def add(self, counter: str, amount: int) -> None:
        """Let a counter rise."""
        ...


class NoTracer:
    """Keeps nothing, at the cost of the calls."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def span(self, name: str, **details: int) -> AbstractContextManager[None]:
        """Nothing."""
        return self._nothing

    def add(self, counter: str, amount: int) -> None:
        """Nothing."""


NO_TRACER: Tracer = NoTracer()


class TraceFile:
    """Writes events as they come, so that memory does not grow; any thread may add some.

    Not written to a temporary name: of a process that was killed, what is there can still be read
    by trace viewers, which do not insist on the closing bracket. A disk that is full ends the trace
    and not the work; `close` tells. So does a trace that is as large as it may be, which is logged.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Begin the file `path`, replacing a trace that was there.

        Raises UsageError if it cannot be written, or is something else.
        """
        self._path = path
        self._error: OSError | None = None
        self._totals: dict[str, int] = {}
        self._threads: set[int] = set()
        self._process = os.getpid()
        self._start_ns = perf_counter_ns()
        self._num_bytes = 0
        self._max_bytes = max_bytes
        _check_replaceable(path)
        try:
            self._file: BinaryIO = path.open("wb")
        except OSError as error:
            raise UsageError(f"the trace {path} cannot be written: {error.strerror}") from None
        self._write(_OPENING + self._metadata("process_name", 0, "powerserve"))

    def span(self, name: str, **details: int) -> AbstractContextManager[None]:
        """The time until the context ends, in the thread that began it."""
        return _Span(self, name, details)

    def add(self, counter: str, amount: int) -> None:
        """Let a counter rise."""
        self._totals[counter] = total = self._totals.get(counter, 0) + amount
        self._append(f'"name":"{counter}","ph":"C"', perf_counter_ns(), {"total": total})

    def add_span(self, name: str, start_ns: int, details: dict[str, int]) -> None:
        """A span that ends now; `start_ns` is on the clock of `perf_counter_ns`."""
        duration_us = (perf_counter_ns() - start_ns) / 1000
        self._append(f'"name":"{name}","ph":"X","dur":{duration_us}', start_ns, details)

    def close(self) -> None:
        """Complete the file; nothing may be added afterwards.

        Raises UsageError if not all of it could be written.
        """
        self._write("\n]\n")
        try:
            self._file.close()
        except OSError as error:
            self._error = self._error or error
        if self._error is not None:
            raise UsageError(f"the trace {self._path} is incomplete: {self._error.strerror}")

    def _append(self, start: str, time_ns: int, details: dict[str, int]) -> None:
        """Add an event, whose JSON text begins with `start`: encoding objects takes far longer."""
        if self._num_bytes >= self._max_bytes:
            return
        thread = threading.get_ident()
        if thread not in self._threads:
            self._threads.add(thread)
            thread_name = threading.current_thread().name
            self._write(",\n" + self._metadata("thread_name", thread, thread_name))
        time_us = (time_ns - self._start_ns) / 1000
        arguments = ",".join([f'"{name}":{value}' for name, value in details.items()])
        place = f'"pid":{self._process},"tid":{thread},"ts":{time_us}'
        self._write(f',\n{{{start},{place},"args":{{{arguments}}}}}')
        if self._num_bytes >= self._max_bytes:
            logger.warning("the trace %s is full: it shows nothing from now on", self._path)

    def _metadata(self, kind: str, thread: int, value: str) -> str:
        event = {"name": kind, "ph": "M", "pid": self._process, "tid": thread}
        return json.dumps(event | {"args": {"name": value}}, separators=(",", ":"))

    def _write(self, text: str) -> None:
        """One call of the file's `write` per event: these do not mix."""
        if self._error is None:
            try:
                self._num_bytes += self._file.write(text.encode())
            except OSError as error:
                self._error = error


def _check_replaceable(path: Path) -> None:
    """Raise UsageError for a file that is neither empty nor a trace: a model, perhaps."""
    try:
        beginning = b""
        if path.is_file():  # and not, say, a pipe
            with path.open("rb") as file:
                beginning = file.read(len(_BEGINNING))
    except OSError as error:
        raise UsageError(f"the trace {path} cannot be written: {error.strerror}") from None
    if beginning not in (b"", _BEGINNING):
        raise UsageError(f"{path} is no trace, and would be overwritten; name another file")


class _Span:
    """A span of a TraceFile."""

    __slots__ = ("_details", "_name", "_start_ns", "_trace")

    def __init__(self, trace: TraceFile, name: str, details: dict[str, int]) -> None:
        self._trace = trace
        self._name = name
        self._details = details

    def __enter__(self) -> None:
        self._start_ns = perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._trace.add_span(self._name, self._start_ns, self._details)


@contextmanager
def tracing(path: Path | None) -> Iterator[Tracer]:
    """A tracer for the time of a block, which writes to `path` unless that is None.

    The file is complete afterwards, however the block ends. Raises UsageError.
    """
    if path is None:
        yield NO_TRACER
        return
    trace = TraceFile(path)
    try:
        yield trace
    finally:
        trace.close()
