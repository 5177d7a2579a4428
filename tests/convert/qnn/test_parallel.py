"""Pieces of work side by side: how many, how much memory, and what an error ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from powerserve.convert.qnn.parallel import Piece, run_side_by_side


class Gauge:
    """Counts what runs at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = self.most = self.memory = self.most_memory = 0

    def piece(self, index: int, memory: int) -> Piece[int]:
        def run() -> int:
            self._change(1, memory)
            time.sleep(0.02)
            self._change(-1, -memory)
            return 10 * index

        return Piece(run, memory)

    def _change(self, count: int, memory: int) -> None:
        with self._lock:
            self.running += count
            self.memory += memory
            self.most = max(self.most, self.running)
            self.most_memory = max(self.most_memory, self.memory)


def nothing() -> None:
    """End what there is not."""


def test_every_piece_is_done_with_so_many_at_a_time() -> None:
    gauge = Gauge()
    pieces = [gauge.piece(index, 1) for index in range(8)]
    results = dict(run_side_by_side(pieces, 3, None, nothing))
    assert results == {index: 10 * index for index in range(8)}
    assert gauge.most == 3


def test_memory_bounds_how_many_run() -> None:
    gauge = Gauge()
    pieces = [gauge.piece(index, memory) for index, memory in enumerate((4, 4, 3, 2, 5))]
    results = dict(run_side_by_side(pieces, 4, 7, nothing))
    assert len(results) == 5
    assert gauge.most_memory <= 7
    assert gauge.most > 1


def test_a_piece_too_large_for_memory_runs_alone() -> None:
    gauge = Gauge()
    pieces = [gauge.piece(0, 9), gauge.piece(1, 9)]
    assert len(dict(run_side_by_side(pieces, 2, 5, nothing))) == 2
    assert gauge.most == 1


def test_an_error_ends_the_others() -> None:
    stop = threading.Event()

    def wait() -> None:
        assert stop.wait(60)

    def fail() -> None:
        raise ValueError("broken")

    runs: list[Callable[[], None]] = [wait, fail]
    with pytest.raises(ValueError, match="broken"):
        list(run_side_by_side([Piece(run, 1) for run in runs], 2, None, stop.set))


def test_leaving_early_ends_the_others() -> None:
    stop = threading.Event()

    def wait() -> None:
        assert stop.wait(60)

    results = run_side_by_side([Piece(nothing, 1), Piece(wait, 1)], 2, None, stop.set)
    next(results)
    results.close()
    assert stop.is_set()
