"""Runs a command of PowerServe for the scripts in this folder, which keep the original's paths."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

LAUNCHER = Path(__file__).resolve().parents[1] / "powerserve"


def launch(command: str) -> NoReturn:
    """Run `powerserve COMMAND` with this script's arguments, in this Python if it has PowerServe.

    Elsewhere the launcher beside the source is run, which sets up an environment of its own.
    """
    try:
        from powerserve.cli.main import run_command
    except ImportError:
        os.execv(LAUNCHER, [str(LAUNCHER), command, *sys.argv[1:]])
    sys.exit(run_command(command, prog=Path(sys.argv[0]).name))
