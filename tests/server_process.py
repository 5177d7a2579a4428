"""`powerserve serve` as a process of its own, on a port that is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

SERVE = (sys.executable, "-m", "powerserve", "serve")
READY = "powerserve is listening on "


class ServerProcess:
    """A running server. Stop it with `stop`, or use `serving`."""

    def __init__(
        self,
        *flags: str | Path,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str | Path] = SERVE,
    ) -> None:
        """Start `powerserve serve FLAGS`, or another program, and wait until it is ready."""
        self.process = subprocess.Popen(
            [*map(str, program), "--port", "0", *map(str, flags)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment or {}),
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(READY), self.stop()[1]
        self.url = line.removeprefix(READY).strip()

    def client(self, **options: object) -> httpx.Client:
        """An HTTP client for it."""
        return httpx.Client(base_url=self.url, timeout=60, **options)  # type: ignore[arg-type]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def stop(self) -> tuple[int, str]:
        """End it; its exit status and what it wrote to standard error."""
        if self.process.poll() is None:
            self.process.terminate()
        errors = self.process.communicate(timeout=60)[1]
        return self.process.returncode, errors


@contextmanager
def serving(
    *flags: str | Path,
    environment: Mapping[str, str] | None = None,
    program: Sequence[str | Path] = SERVE,
) -> Iterator[ServerProcess]:
    """A server for the time of a block, whose end must be a clean one."""
    server = ServerProcess(*flags, environment=environment, program=program)
    try:
        yield server
    finally:
        status, errors = server.stop()
    assert status == 0, errors
    assert "Traceback" not in errors, errors


def wait_until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
