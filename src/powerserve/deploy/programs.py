"""Running adb and hdc, the programs that talk to devices."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from powerserve.core.errors import DeviceError


def find_program(name: str, folders: Sequence[tuple[str, str]]) -> str | None:
    """The program `name` on PATH, or below the folder that an environment variable names.

    `folders` are pairs of a variable and a path below what it says.
    """
    if found := shutil.which(name):
        return found
    places = [
        Path(root) / below for variable, below in folders if (root := os.environ.get(variable))
    ]
    return next((each for place in places if (each := shutil.which(name, path=place))), None)


def call(
    command: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and keep what it prints. Raises DeviceError."""
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        raise DeviceError(
            f"{name} did not answer within {timeout_s:.0f} s: reconnect the device, or end "
            f"`{name}`'s server and try again"
        ) from None
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started: {error.strerror}") from None


def stream(command: Sequence[str]) -> None:
    """Run a program whose output is ours, until it ends. Raises DeviceError."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise DeviceError(f"{command[0]} cannot be started: {error.strerror}") from None
    with process:
        try:
            process.wait()
        except BaseException:
            process.terminate()
            raise
