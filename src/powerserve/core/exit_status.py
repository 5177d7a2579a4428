"""How a child process ended, in words."""

from __future__ import annotations

import signal


def describe_exit(status: int) -> str:
    """What follows the process's name in a sentence; `status` as `subprocess` gives it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        number = signal.Signals(-status)
    except ValueError:
        return f"was ended by signal {-status}"
    if number is signal.SIGKILL:
        return "was killed (SIGKILL; if nobody did that by hand, memory ran out)"
    return f"crashed ({number.name})"
