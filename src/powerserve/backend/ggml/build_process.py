"""Run a build as a child process: follow its steps, keep its output, stop all of it on Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.compiler import likely_reason
from powerserve.core.errors import BackendError

STOP_TIMEOUT_S = 10

_NINJA_STEP = re.compile(r"\s*\[(\d+)/(\d+)\] (.*)")
_MAKE_STEP = re.compile(r"\s*\[ *(\d+)%\] (.*)")
_SOURCE = re.compile(r"([^/ ]+\.(?:cpp|c|cc|cu|m|s))\.(?:o|obj)\b", re.IGNORECASE)
_PIP_STEP = re.compile(r"\s*(?:Collecting|Downloading|Installing|Preparing|Building) .*")


@dataclass(frozen=True, slots=True)
class BuildStep:
    """What the build is doing now."""

    text: str
    fraction: float | None = None  # of the compilation, once that is known


ReportStep = Callable[[BuildStep], None]


def run(command: list[str], environment: Mapping[str, str], log: Path, report: ReportStep) -> None:
    """Run `command` with its output in `log`, reporting each step it announces.

    Raises:
        BackendError: it failed; the text quotes the line that seems to say why.
    """
    with log.open("w") as out, _started(command, environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            if step := parse_step(line):
                report(step)
    if process.returncode != 0:
        reason = likely_reason(log.read_text())
        raise BackendError(f"the build failed: {reason} (the whole output is in {log})")


def parse_step(line: str) -> BuildStep | None:
    """The step that a line of output announces (in pip's, ninja's or make's way), if it does."""
    if match := _NINJA_STEP.match(line):
        done, total, text = match.groups()
        return BuildStep(_short(text), int(done) / int(total))
    if match := _MAKE_STEP.match(line):
        percent, text = match.groups()
        return BuildStep(_short(text), int(percent) / 100)
    return BuildStep(line.strip()) if _PIP_STEP.fullmatch(line.rstrip()) else None


def _short(text: str) -> str:
    """`Building CXX object ggml/src/…/ggml.cpp.o` -> `compiling ggml.cpp`."""
    source = _SOURCE.search(text)
    return f"compiling {source[1]}" if source else text.strip()


@contextmanager
def _started(command: list[str], environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # a process group of its own, which can be stopped as a whole
    )
    with process:
        try:
            yield process
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[str]) -> None:
    """End the build and its compilers."""
    _signal(process, signal.SIGTERM)
    try:
        process.communicate(timeout=STOP_TIMEOUT_S)  # until the last writer to the pipe is gone
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)


def _signal(process: subprocess.Popen[str], number: int) -> None:
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
