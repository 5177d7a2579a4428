"""PowerServe's command line as a user meets it: in this process, or as a program of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from powerserve.cli.main import main, run_main

PROGRAM = (sys.executable, "-m", "powerserve")
ORIGINAL_RUN = (
    *(sys.executable, "-c"),
    "import sys; from powerserve.cli.main import run_main; sys.exit(run_main())",
)


def status_of(*arguments: str | Path) -> int:
    """The exit status of `powerserve ARGUMENTS` in this process."""
    try:
        return main([str(each) for each in arguments])
    except SystemExit as exit_request:
        assert isinstance(exit_request.code, int)
        return exit_request.code


def original_run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """The exit status of `powerserve-run ARGUMENTS` in this process."""
    monkeypatch.setattr(sys, "argv", ["powerserve-run", *(str(each) for each in arguments)])
    return run_main()


def program(
    *arguments: str | Path, stdin: bytes = b"", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run `powerserve ARGUMENTS` as a program of its own."""
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env=os.environ | dict(environment or {}),
        timeout=120,
    )


def type_in(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    """Let this process find `text` on its standard input, as from a pipe."""
    raw = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
