"""How long work is shown: a bar in a terminal, lines in a log, or nothing.

Progress goes to standard error, so that standard output stays usable in pipes. rich is imported
only when a bar is drawn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

Advance = Callable[[int], None]  # called with what (bytes, pieces) is new since the last call


class Progress(Protocol):
    """Where long work reports to."""

    def transfer(
        self, label: str, total_bytes: int, done_bytes: int
    ) -> AbstractContextManager[Advance]:
        """Show one transfer of `total_bytes`, of which `done_bytes` are there already."""
        ...

    def count(self, label: str, total: int, done: int = 0) -> AbstractContextManager[Advance]:
        """Show work of `total` pieces, of which `done` are there already."""
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

    @contextmanager
    def count(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Count nothing."""
        yield lambda pieces: None

    def note(self, text: str) -> None:
        """Say nothing."""


class Lines:
    """One line per transfer, some for counted work, on standard error: for logs and pipes."""

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Print what is fetched, once."""
        there = f", {format_bytes(done_bytes)} already here" if done_bytes else ""
        self.note(f"{label}: {format_bytes(total_bytes)}{there}")
        yield lambda num_bytes: None

    @contextmanager
    def count(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Print where the work is at its start and whenever another tenth is done."""
        self.note(f"{label}: {done} of {total}")

        def advance(pieces: int) -> None:
            nonlocal done
            before, done = done, done + pieces
            if 10 * done // total > 10 * before // total:
                self.note(f"{label}: {done} of {total}")

        yield advance

    def note(self, text: str) -> None:
        """Print `text`."""
        print(text, file=sys.stderr, flush=True)


class Bars:
    """A progress bar with remaining time on standard error."""

    @contextmanager
    def transfer(self, label: str, total_bytes: int, done_bytes: int) -> Iterator[Advance]:
        """Draw a bar with size and speed until the transfer ends."""
        from rich.progress import DownloadColumn, TransferSpeedColumn

        with _bar(label, total_bytes, done_bytes, DownloadColumn(), TransferSpeedColumn()) as bar:
            yield bar

    @contextmanager
    def count(self, label: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Draw a bar with the pieces that are done until all are."""
        from rich.progress import MofNCompleteColumn

        with _bar(label, total, done, MofNCompleteColumn()) as bar:
            yield bar

    def note(self, text: str) -> None:
        """Print `text`."""
        print(text, file=sys.stderr, flush=True)


SILENT: Progress = Silent()


@contextmanager
def _bar(label: str, total: int, done: int, *columns: ProgressColumn) -> Iterator[Advance]:
    """A bar between what it is about and the time it has to go; `columns` come in between."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    text = TextColumn("{task.description}", markup=False)
    every = (text, BarColumn(), *columns, TimeRemainingColumn())
    with RichProgress(*every, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, completed=done)
        yield lambda pieces: bars.advance(task, pieces)


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
