"""Questions about libraries that are answered in a child process, because they may crash it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from powerserve.core.errors import BackendError

TIME_LIMIT_S = 60


def ask_child(module: str, arguments: list[str], what: str) -> Any:
    """What `python -m module arguments` prints as JSON; `what` is being asked, in the plural.

    Raises:
        BackendError: it failed (its last line says why), crashed or does not end.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise BackendError(f"{what} do not answer") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else _status_text(done.returncode)
        raise BackendError(f"{what} do not work here: {reason}")
    return json.loads(done.stdout)


def _status_text(status: int) -> str:
    return f"ended by signal {-status}" if status < 0 else f"exit status {status}"
