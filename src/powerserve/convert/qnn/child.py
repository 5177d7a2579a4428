"""Work in a child process: Qualcomm's library crashes now and then, and keeps all its memory.

A worker module has `main()` that calls `serve(work)`; its request and its answer are JSON. It dies
with its parent, and the parent ends it on Ctrl-C.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from powerserve.core.errors import BackendError, PowerServeError

PR_SET_PDEATHSIG = 1  # prctl(2)
ERROR_TAIL = 400  # characters of a library's complaint that are worth showing


@dataclass
class ChildProcesses:
    """Starts workers, from several threads if need be, and ends them when it is left."""

    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ending: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill what runs, and start nothing more."""
        with self._lock:
            self._ending = True
            for process in self._running:
                process.kill()

    def run(self, module: str, request: Any, *, task: str, timeout_s: float) -> Any:
        """The answer of the worker `module` to `request`; `task` names the work in errors.

        Raises:
            BackendError: the worker crashed, was killed, took too long or reports an error.
        """
        with tempfile.TemporaryDirectory(prefix="powerserve-") as folder:
            answer, log = Path(folder) / "answer.json", Path(folder) / "log"
            with log.open("wb") as output:
                process = self._start([module, str(answer)], output.fileno())
                self._talk(process, json.dumps(request).encode(), task, timeout_s)
            return _read_answer(answer, log, process.returncode, task)

    def _start(self, arguments: list[str], log: int) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ending:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the parent only, which ends its children
            )
            self._running.add(process)
        return process

    def _talk(
        self, process: subprocess.Popen[bytes], request: bytes, task: str, timeout_s: float
    ) -> None:
        try:
            process.communicate(request, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise BackendError(f"{task} took more than {timeout_s:.0f} s and was ended") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with self._lock:
                self._running.discard(process)


def serve(work: Callable[[Any], Any]) -> None:
    """Answer the request on standard input by `work`, in the file that the parent names."""
    _die_with_parent()
    request = json.loads(sys.stdin.buffer.read())
    try:
        answer = {"value": work(request)}
    except PowerServeError as error:
        answer = {"error": str(error)}
    except Exception as error:  # of a foreign library: any type
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[1]).write_text(json.dumps(answer), encoding="utf-8")
    # The libraries' own clean-up at exit is not always survived, and there is nothing left to do.
    sys.stdout.flush()
    os._exit(0)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _read_answer(answer: Path, log: Path, status: int, task: str) -> Any:
    if not answer.exists():
        raise BackendError(f"{task} failed: {_ending(status)}{_last_error(log)}")
    content = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in content:
        raise BackendError(f"{task} failed: {content['error'][:ERROR_TAIL]}{_last_error(log)}")
    return content["value"]


def _ending(status: int) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed; if nobody did that by hand, memory ran out"
    if status < 0:
        return f"Qualcomm's library crashed ({signal.Signals(-status).name})"
    return f"its process ended with status {status}"


def _last_error(log: Path) -> str:
    """The last complaint in a worker's log, as the end of a sentence."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    complaints = [line for line in lines if "[E:" in line or "rror" in line]
    return f" ({complaints[-1].strip()[:ERROR_TAIL]})" if complaints else ""
