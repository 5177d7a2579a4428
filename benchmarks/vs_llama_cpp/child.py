"""Run a command and see when it says its first word, how long it runs and what memory it takes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True, slots=True)
class ChildRun:
    """A finished process."""

    output: str
    first_output_s: float  # from the start of the process to its first byte
    total_s: float
    peak_memory_bytes: int


def run_child(command: Sequence[str], environment: Mapping[str, str] | None = None) -> ChildRun:
    """Run `command` to its end; exits with its message if it fails."""
    start_s = perf_counter()
    process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None and process.stderr is not None
    first = os.read(process.stdout.fileno(), 1)
    first_output_s = perf_counter() - start_s
    output = first + process.stdout.read()
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()}")
    total_s = perf_counter() - start_s
    return ChildRun(output.decode(), first_output_s, total_s, usage.ru_maxrss * 1024)
