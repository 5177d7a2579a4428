"""Runs a command of PowerServe for the scripts in this folder, which keep the original's paths."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

LAUNCHER = Path(__file__).resolve().parents[1] / "powerserve"


def launch(command: str, *arguments: str) -> NoReturn:
    """Run `powerserve COMMAND` with these and this script's arguments.

    That happens in this Python if it has PowerServe; else the launcher beside the source is run,
    which sets up an environment of its own.
    """
    arguments += tuple(sys.argv[1:])
    try:
        from powerserve.cli.main import run_command
    except ImportError:
        os.execv(LAUNCHER, [str(LAUNCHER), command, *arguments])
    sys.exit(run_command(command, arguments, prog=Path(sys.argv[0]).name))
