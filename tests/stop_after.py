"""Ctrl-C in the middle of writing a file, at a chosen byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from powerserve.storage.progress import Advance, Silent


class StopAfter(Silent):
    """Progress that raises KeyboardInterrupt, as Ctrl-C does, once so many bytes are written."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Count bytes down."""

        def advance(num_bytes: int) -> None:
            self.num_bytes -= num_bytes
            if self.num_bytes < 0:
                raise KeyboardInterrupt

        yield advance
