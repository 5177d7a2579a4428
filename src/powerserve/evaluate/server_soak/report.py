"""What came of a soak test: what is wrong, as sentences; all of it, as tables and as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from powerserve.evaluate.server_soak.process import Footprint
from powerserve.evaluate.server_soak.run import SoakResult
from powerserve.storage.progress import format_bytes

_MORE_THREADS = 8  # worker pools fill up with use, to a size that is fixed
_MORE_FILES = 4  # what libraries open at first use
_SETTLED_S = 300.0  # until then caches, compiled graphs and what allocators keep still grow
_MORE_BYTES_SETTLED = 96 << 20  # what allocators keep of memory that was freed
_MORE_BYTES_SETTLING = 256 << 20  # what only a gross leak exceeds
_NUM_ROWS = 12  # of the table of memory over time


def findings(result: SoakResult) -> list[str]:
    """A sentence for everything that is wrong; none after a good run."""
    found = [f"{result.num_problems} requests went wrong"] if result.num_problems else []
    if result.exit_status != 0:
        found.append(f"the server ended with status {result.exit_status}")
    if "Traceback" in result.log:
        found.append("there is a traceback in the server's log")
    return [*found, *_leaks(result)]


def _leaks(result: SoakResult) -> Iterator[str]:
    before, after = result.before, result.after
    if before is None or after is None:
        yield "the run has no end"
        return
    if after.num_requests:
        yield f"{after.num_requests} requests still run or wait"
    if after.num_cells_taken != after.num_cells_kept:
        yield f"{after.num_cells_taken - after.num_cells_kept} cells of the cache are lost"
    if after.num_tasks > before.num_tasks:
        yield f"{after.num_tasks - before.num_tasks} tasks are left over"
    yield from _growth(before.footprint, after.footprint)
    first_half = result.samples[: len(result.samples) // 2]
    has_settled = bool(first_half) and first_half[-1][0] >= _SETTLED_S
    allowed = _MORE_BYTES_SETTLED if has_settled else _MORE_BYTES_SETTLING
    most = max((each.resident_bytes for _, each in first_half), default=0)
    num_bytes = after.footprint.resident_bytes - most
    if num_bytes > allowed:
        yield f"memory has grown by {format_bytes(num_bytes)} after half of the time"


def _growth(before: Footprint, after: Footprint) -> Iterator[str]:
    if after.num_threads > before.num_threads + _MORE_THREADS:
        yield f"{after.num_threads - before.num_threads} threads are left over"
    if after.num_files > before.num_files + _MORE_FILES:
        yield f"{after.num_files - before.num_files} files are left open"


def as_data(result: SoakResult) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "plan": {**asdict(result.plan), "folder": result.plan.folder.name},
        "models": result.plan.models,
        "findings": findings(result),
        "outcomes": [
            {"action": action, "outcome": outcome, "count": count}
            for (action, outcome), count in sorted(result.outcomes.items())
        ],
        "problems": [asdict(problem) for problem in result.problems],
        "before": result.before and asdict(result.before),
        "after": result.after and asdict(result.after),
        "samples": [{"at_s": at_s, **asdict(footprint)} for at_s, footprint in result.samples],
        "exit_status": result.exit_status,
    }


def outcome_rows(result: SoakResult) -> list[list[str]]:
    """What clients did, what they got, how often; with a heading."""
    return [["clients", "outcome", "times"]] + [
        [action.replace("_", " "), outcome, f"{count:,}"]
        for (action, outcome), count in sorted(result.outcomes.items())
    ]


def state_rows(result: SoakResult) -> list[list[str]]:
    """What the server held before and after; with a heading."""
    states = [state for state in (result.before, result.after) if state is not None]
    rows = {
        "memory": [format_bytes(each.footprint.resident_bytes) for each in states],
        "threads": [str(each.footprint.num_threads) for each in states],
        "open files": [str(each.footprint.num_files) for each in states],
        "tasks of the event loop": [str(each.num_tasks) for each in states],
        "requests": [str(each.num_requests) for each in states],
        "cells taken": [str(each.num_cells_taken) for each in states],
        "of them by prefixes": [str(each.num_cells_kept) for each in states],
    }
    return [["at rest", "before", "after"], *([name, *values] for name, values in rows.items())]


def memory_rows(result: SoakResult) -> list[list[str]]:
    """The most of each in parts of the run; with a heading."""
    samples = result.samples
    size = max(1, -(-len(samples) // _NUM_ROWS))
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [["until second", "most memory", "most threads", "most files"]] + [
        [
            f"{part[-1][0]:.0f}",
            format_bytes(max(each.resident_bytes for _, each in part)),
            str(max(each.num_threads for _, each in part)),
            str(max(each.num_files for _, each in part)),
        ]
        for part in parts
    ]
