"""Threads that work for the server, and that nobody waits for at its end."""

from __future__ import annotations

import subprocess
import sys
from threading import Event, current_thread

import pytest

from powerserve.server.daemon_executor import DaemonExecutor


def test_results_and_errors_reach_who_asked() -> None:
    with DaemonExecutor(2, "test") as executor:
        good, bad = executor.submit(divmod, 7, 2), executor.submit(divmod, 7, 0)
        assert good.result() == (3, 1)
        with pytest.raises(ZeroDivisionError):
            bad.result()


def test_there_are_no_more_threads_than_allowed() -> None:
    with DaemonExecutor(2, "test") as executor:
        futures = [executor.submit(current_thread) for _ in range(50)]
        threads = {future.result() for future in futures}
    assert 1 <= len(threads) <= 2
    assert not any(thread.is_alive() for thread in threads)


def test_what_has_not_begun_can_be_cancelled() -> None:
    go_on = Event()
    executor = DaemonExecutor(1, "test")
    running = executor.submit(go_on.wait)
    given_up, waiting = executor.submit(divmod, 7, 2), executor.submit(divmod, 7, 2)
    assert given_up.cancel()
    executor.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert running.result() is True
    assert waiting.cancelled()


def test_the_process_ends_whatever_runs() -> None:
    program = (
        "from threading import Event\n"
        "from powerserve.server.daemon_executor import DaemonExecutor\n"
        "begun = Event()\n"
        "executor = DaemonExecutor(1, 'test')\n"
        "executor.submit(lambda: (begun.set(), Event().wait()))\n"
        "begun.wait()\n"
        "executor.shutdown(wait=False, cancel_futures=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == b""
