"""Exit statuses of child processes, in words."""

from __future__ import annotations

import pytest

from powerserve.core.exit_status import describe_exit


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "ended with status 3"),
        (-11, "crashed (SIGSEGV)"),
        (-9, "was killed (SIGKILL; if nobody did that by hand, memory ran out)"),
        (-200, "was ended by signal 200"),
    ],
)
def test_what_a_status_means(status: int, words: str) -> None:
    assert describe_exit(status) == words
