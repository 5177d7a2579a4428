"""Work in child processes: what they answer, and every way in which they can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from powerserve.convert.qnn.child import ChildProcesses
from powerserve.core.errors import BackendError

TESTS = Path(__file__).parents[2]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildProcesses]:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    with ChildProcesses() as children:
        yield children


def ask(children: ChildProcesses, timeout_s: float = 60, **request: Any) -> Any:
    return children.run("npu_workers", request, task="the work", timeout_s=timeout_s)


def test_a_worker_answers(children: ChildProcesses) -> None:
    assert ask(children, do="answer", number=21) == {"twice": 42}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"do": "kill", "signal": "SIGKILL"}, "the work failed: its process was killed.*memory"),
        ({"do": "kill", "signal": "SIGSEGV"}, r"library crashed \(SIGSEGV\)"),
        ({"do": "complain"}, "a sentence.*too heavy"),
        ({"do": "fail"}, "RuntimeError: of a library"),
        ({"do": "exit"}, "ended with status 3"),
    ],
)
def test_a_worker_that_fails(
    children: ChildProcesses, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        ask(children, **request_)


def test_a_worker_that_takes_too_long(children: ChildProcesses, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="more than 1 s"):
        ask(children, timeout_s=1, do="wait", file=str(tmp_path / "pid"))


def test_ending_them_ends_what_runs_and_starts_nothing_more(
    children: ChildProcesses, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            ask(children, do="wait", file=str(file))
        except BackendError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    read_pid(file)
    children.end()
    thread.join(30)
    assert "was killed" in str(errors[0])
    with pytest.raises(KeyboardInterrupt):
        ask(children, do="answer", number=1)


@pytest.mark.skipif(sys.platform != "linux", reason="prctl of Linux")
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = (
        "from powerserve.convert.qnn.child import ChildProcesses\n"
        f"request = {{'do': 'wait', 'file': {str(file)!r}}}\n"
        "ChildProcesses().run('npu_workers', request, task='x', timeout_s=600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(TESTS)}
    )
    worker = read_pid(file)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not is_running(worker))


def read_pid(file: Path) -> int:
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"))
    return int(file.read_text())


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie, which has nobody left to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
