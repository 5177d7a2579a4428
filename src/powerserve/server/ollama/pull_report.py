"""How far a download is: reported by its thread, read by the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from powerserve.core.errors import DownloadError
from powerserve.storage.progress import Advance

_INTERVAL_S = 0.1  # between two lines about a transfer


class PullReport:
    """A `Progress` whose lines the event loop takes; of one transfer only the newest waits.

    Made in the loop's thread. Once it is cancelled, the download ends at its next block.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lines: list[dict[str, Any]] = []
        self._is_closed = False
        self._cancelled = threading.Event()

    async def lines(self) -> AsyncIterator[dict[str, Any]]:
        """All lines, until the report is closed."""
        while not self._is_closed or self._lines:
            await self._arrived.wait()
            self._arrived.clear()
            lines, self._lines = self._lines, []
            for line in lines:
                yield line

    def close(self) -> None:
        """Nothing more will come; in the loop's thread."""
        self._is_closed = True
        self._arrived.set()

    def cancel(self) -> None:
        """Nobody wants the download any more; from any thread."""
        self._cancelled.set()

    # What the download calls, in its thread.

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Report one file that is fetched. Raises DownloadError once the report is cancelled."""
        line = {"status": f"pulling {label}", "digest": _digest(label), "total": total_bytes}
        reported = 0.0

        def advance(num_bytes: int) -> None:
            nonlocal done_bytes, reported
            self._check_wanted()
            done_bytes += num_bytes
            now = monotonic()
            if now - reported >= _INTERVAL_S or done_bytes == total_bytes:
                reported = now
                self._post(line | {"completed": done_bytes})

        advance(0)
        yield advance

    @contextmanager
    def count(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Report nothing but the work's beginning: downloads count bytes."""
        self.note(label)
        yield lambda pieces: None

    def note(self, text: str) -> None:
        """Report one thing that the user should know."""
        self._post({"status": text})

    def _check_wanted(self) -> None:
        if self._cancelled.is_set():
            raise DownloadError("the download was cancelled")

    def _post(self, line: dict[str, Any]) -> None:
        self._check_wanted()
        self._loop.call_soon_threadsafe(self._take, line)

    def _take(self, line: dict[str, Any]) -> None:
        digest = line.get("digest")
        if digest is not None and self._lines and self._lines[-1].get("digest") == digest:
            self._lines.pop()
        self._lines.append(line)
        self._arrived.set()


def _digest(label: str) -> str:
    """An id for a transfer: clients tell transfers apart by what should be their digests."""
    return f"sha256:{hashlib.sha256(label.encode()).hexdigest()}"
