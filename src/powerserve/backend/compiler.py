"""The system's C++ compiler: which one it is, how it is run, and what its failures mean."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping

from powerserve.core.errors import BackendError

TIME_LIMIT_S = 300

_ERROR = re.compile(r"CMake Error|\berror:", re.IGNORECASE)


def find_compiler(environment: Mapping[str, str]) -> str:
    """The path of the C++ compiler that `environment` names or has in its PATH.

    Raises:
        BackendError: there is none.
    """
    wanted = shlex.split(environment.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    search_path = environment.get("PATH")
    found = next(filter(None, (shutil.which(name, path=search_path) for name in wanted)), None)
    if found is None:
        raise BackendError(
            f"there is no C++ compiler ({' or '.join(wanted)}) here; get one with: "
            f"{compiler_advice()}"
        )
    return found


def compiler_version(compiler: str) -> str:
    """The compiler's path and the first line it says about itself; raises BackendError."""
    try:
        answer = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"the C++ compiler {compiler} does not run: {error}") from None
    return f"{compiler} {answer.stdout.partition(chr(10))[0]}".strip()


def compiler_advice() -> str:
    """The one command that installs a C++ compiler on this system."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    commands = {
        "termux-info": "pkg install clang cmake ninja",
        "apt-get": "sudo apt-get install -y g++",
        "dnf": "sudo dnf install -y gcc-c++",
        "pacman": "sudo pacman -S --needed base-devel",
        "apk": "sudo apk add g++",
        "brew": "brew install gcc",
    }
    known = (command for tool, command in commands.items() if shutil.which(tool))
    return next(known, "your system's package manager")


def run_compiler(command: list[str], what: str) -> None:
    """Run a compiler to the end; `what` is made, as in "the NPU helper".

    Raises:
        BackendError: it does not start, fails or takes too long.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT_S)
    except OSError as error:
        raise BackendError(f"{what} cannot be compiled: {error}") from None
    except subprocess.TimeoutExpired:
        raise BackendError(
            f"{what} cannot be compiled: {command[0]} took more than {TIME_LIMIT_S} s"
        ) from None
    if done.returncode != 0:
        reason = likely_reason(done.stdout + done.stderr)
        raise BackendError(f"{what} cannot be compiled: {reason}")


def likely_reason(output: str) -> str:
    """The first line that names an error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next(filter(_ERROR.search, lines), lines[-1] if lines else "no output")
