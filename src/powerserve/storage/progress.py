"""How long transfers are shown: a bar in a terminal, one line in a log, or nothing.

Progress goes to standard error, so that standard output stays usable in pipes. rich is imported
only when a bar is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]  # called with the bytes that have arrived since the last call


class Progress(Protocol):
    """Where a download reports to."""

    def transfer(
        self, label: str, total_bytes: int, done_bytes: int
    ) -> AbstractContextManager[Advance]:
        """Show one transfer of `total_bytes`, of which `done_bytes` are there already."""
        ...

    def note(self, text: str) -> None:
        """Tell one thing that the user should know, such as what is being waited for."""
        ...


class Silent:
    """Shows nothing: for library use and tests."""

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda num_bytes: None

    def note(self, text: str) -> None:
        """Say nothing."""


class Lines:
    """One line per transfer on standard error: for logs and pipes."""

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Print what is fetched, once."""
        there = f", {format_bytes(done_bytes)} already here" if done_bytes else ""
        self.note(f"{label}: {format_bytes(total_bytes)}{there}")
        yield lambda num_bytes: None

    def note(self, text: str) -> None:
        """Print `text`."""
        print(text, file=sys.stderr, flush=True)


class Bars:
    """A progress bar with size, speed and remaining time on standard error."""

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Draw a bar until the transfer ends."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(label, total=total_bytes, completed=done_bytes)
            yield lambda num_bytes: bars.advance(task, num_bytes)

    def note(self, text: str) -> None:
        """Print `text`."""
        print(text, file=sys.stderr, flush=True)


SILENT: Progress = Silent()


def console_progress() -> Progress:
    """Bars where standard error is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()


def format_bytes(num_bytes: int) -> str:
    """`98362432` -> `98.4 MB` (decimal units, as disks and hubs count)."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit in ("B", "kB") else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
