"""Independent pieces of work side by side, as far as processors and memory go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Piece(Generic[T]):
    """Work that waits for a child process; `memory` is what it takes at its peak, in bytes."""

    run: Callable[[], T]
    memory: int


def run_side_by_side(
    pieces: Sequence[Piece[T]], num_workers: int, memory: int | None, end: Callable[[], None]
) -> Iterator[tuple[int, T]]:
    """Yield (index, result) of every piece as it is done.

    At most `num_workers` run at once, and together they take at most `memory` bytes; a piece that
    takes more runs alone. The first exception is raised, after `end` has ended what still runs.
    """
    waiting = dict(enumerate(pieces))
    running: dict[Future[T], int] = {}
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            while waiting or running:
                taken = sum(pieces[index].memory for index in running.values())
                free = None if memory is None else memory - taken
                for index in _startable(waiting, free, num_workers - len(running), bool(running)):
                    running[pool.submit(waiting.pop(index).run)] = index
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        except BaseException:
            end()  # else leaving the pool would wait for them
            raise


def _startable(
    waiting: dict[int, Piece[T]], free: int | None, slots: int, any_running: bool
) -> list[int]:
    """Which pieces can start now, the first ones first."""
    chosen: list[int] = []
    for index, piece in waiting.items():
        if len(chosen) == slots:
            break
        is_alone = not any_running and not chosen
        if free is None or piece.memory <= free or is_alone:
            chosen.append(index)
            free = None if free is None else free - piece.memory
    return chosen
