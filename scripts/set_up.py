"""Make .venv beside the launcher and install PowerServe into it; needs only a bare Python.

Called by `scripts/bootstrap` when .venv is missing, unfinished or out of date. Set-ups exclude each
other through a file lock that ends with its process. Files in .venv: `powerserve-setup` says that
the environment is ours to delete, `powerserve-ready` (and `powerserve-ready-dev`) that it is
complete, and for which state of the checkout.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
OWNED = VENV / "powerserve-setup"
READY = VENV / "powerserve-ready"
LOCK = VENV / "powerserve-lock"
LOG = VENV / "powerserve-setup.log"


class SetUpError(Exception):
    """The set-up cannot go on; the text says why and what to do."""


@dataclass(frozen=True)
class Installer:
    """One way to make a virtual environment and to install into it."""

    create: list[str]
    install: list[str]


def main() -> int:
    """Set up the environment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", required=True, help="identifies the checkout's present state")
    parser.add_argument("--extra", default="", help="optional dependencies to install too")
    arguments = parser.parse_args()
    try:
        set_up(arguments.state, arguments.extra)
    except SetUpError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("set-up stopped; the next run starts it again")
        return 130
    return 0


def set_up(state: str, extra: str) -> None:
    """Bring .venv to `state`, unless another process has done so while we waited for the lock."""
    if os.name == "nt":
        raise SetUpError("on Windows, install with: py -m pip install .")
    try:
        VENV.mkdir(exist_ok=True)
    except OSError as error:
        raise SetUpError(f"cannot create {VENV}: {error.strerror}") from None
    with exclusive() as lock:
        if is_ready(state, extra):
            return
        say(opening_line(extra))
        installer = find_installer()
        prepare_environment(installer, lock)
        forget_readiness()
        requirement = f".[{extra}]" if extra else "."
        run([*installer.install, "--editable", requirement], lock)
        if not (VENV / "bin" / "powerserve").exists():
            raise SetUpError(f"the installation made no {VENV / 'bin' / 'powerserve'}; see {LOG}")
        mark_ready(state, extra)
        say("ready")


def opening_line(extra: str) -> str:
    """What is about to happen, for the user who waits."""
    tools = " with the development tools" if extra else ""
    if was_ready():
        return f"updating .venv{tools} …"
    return f"first run, setting up .venv{tools} (about a minute) …"


# ---- which tools -------------------------------------------------------------------------------


def find_installer() -> Installer:
    """The first way that works here: venv with pip, venv with the system's pip, uv, virtualenv.

    Debian and its relatives split `ensurepip` off into a package of its own, so that a plain
    `python -m venv` fails there.
    """
    # The real executable, not a link or shim: when an upgrade removes it, .venv/bin/python dangles
    # and the launcher notices.
    base = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    own_pip = [str(PYTHON), "-m", "pip", "install", "--no-input"]
    has_venv = importlib.util.find_spec("venv") is not None
    if has_venv and importlib.util.find_spec("ensurepip") is not None:
        return Installer([base, "-m", "venv", str(VENV)], own_pip)
    if has_venv and importlib.util.find_spec("pip") is not None:
        outer_pip = [sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "--no-input"]
        return Installer([base, "-m", "venv", "--without-pip", str(VENV)], outer_pip)
    if uv := shutil.which("uv"):
        return Installer(
            [uv, "venv", "--allow-existing", "--python", base, str(VENV)],
            [uv, "pip", "install", "--python", str(PYTHON)],
        )
    if virtualenv := shutil.which("virtualenv"):
        return Installer([virtualenv, "--python", base, str(VENV)], own_pip)
    raise SetUpError(f"{base} cannot make virtual environments; get that with\n  {venv_advice()}")


def venv_advice() -> str:
    """The command that completes this Python, as distributions package it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if shutil.which("apt-get"):
        return f"sudo apt-get install -y python{version}-venv"
    if shutil.which("dnf"):
        return "sudo dnf install -y python3-pip"
    return "python3 -m pip install uv"


# ---- the environment ---------------------------------------------------------------------------


def prepare_environment(installer: Installer, lock: int) -> None:
    """Make .venv, or keep the one that is there if it was complete and its Python still runs.

    Raises:
        SetUpError: .venv holds something that this script did not make.
    """
    if was_ready() and works(PYTHON):
        return
    if not OWNED.exists() and any(entry != LOCK for entry in VENV.iterdir()):
        raise SetUpError(
            f"{VENV} was not made by this launcher; rename it, or keep it and run in it: "
            "pip install --editable ."
        )
    clear_environment()
    OWNED.touch()  # first of all: an interrupted set-up must be known as ours
    run(installer.create, lock)


def clear_environment() -> None:
    """Empty .venv, but keep the lock file, which other processes may be waiting for."""
    for entry in VENV.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry != LOCK:
            entry.unlink()


def works(python: Path) -> bool:
    """Whether `python` runs and is new enough."""
    test = "import sys; sys.exit(sys.version_info < (3, 11))"
    try:
        return subprocess.run([python, "-c", test], capture_output=True).returncode == 0
    except OSError:
        return False


# ---- readiness ---------------------------------------------------------------------------------


def is_ready(state: str, extra: str) -> bool:
    """Whether .venv was completed for this state."""
    marker = ready_marker(extra)
    return marker.exists() and marker.read_text().partition("\n")[0] == state and works(PYTHON)


def was_ready() -> bool:
    """Whether .venv was completed once, for whatever state of the checkout in this place."""
    return READY.exists() and READY.read_text().partition("\n")[0].endswith(f" {ROOT}")


def ready_marker(extra: str) -> Path:
    """The file that says .venv is complete, with the optional dependencies `extra`."""
    return READY.with_name(f"{READY.name}-{extra}") if extra else READY


def forget_readiness() -> None:
    """From here to `mark_ready`, an interruption leaves an environment that is made anew."""
    for marker in VENV.glob(f"{READY.name}*"):
        marker.unlink()


def mark_ready(state: str, extra: str) -> None:
    """Write the markers; an environment with `extra` also serves those who need none."""
    for name in dict.fromkeys([extra, ""]):
        marker = ready_marker(name)
        temporary = VENV / "powerserve-marker.new"
        temporary.write_text(f"{state}\nPython {sys.version.split()[0]}\n")
        temporary.replace(marker)


# ---- processes ---------------------------------------------------------------------------------


def run(command: list[str], lock: int) -> None:
    """Run a step with its output in the log; show the output if the step fails."""
    lines: list[str] = []
    with LOG.open("a") as log, start(command, lock) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            log.write(line)
            show_activity(line)
    show_activity("")
    if process.returncode != 0:
        sys.stderr.writelines(lines)
        raise SetUpError(f"set-up failed; this did not work: {' '.join(command)}")


@contextmanager
def start(command: list[str], lock: int) -> Iterator[subprocess.Popen[str]]:
    """The running process, which does not outlive an interruption."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[lock],  # should we be killed, the lock lasts until our child has ended too
    )
    with process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def show_activity(line: str) -> None:
    """On a terminal, show the step's latest line in place; an empty line removes it."""
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stderr.write(f"\r\033[K{line.strip()[:width]}")
        sys.stderr.flush()


def clean_environment() -> dict[str, str]:
    """Our environment less the settings that would send the installation elsewhere."""
    elsewhere = {"PIP_PREFIX", "PIP_TARGET", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in elsewhere}
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@contextmanager
def exclusive() -> Iterator[int]:
    """Wait until no other set-up works on .venv; yields the lock's file descriptor."""
    import fcntl  # not on Windows

    with LOCK.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is setting up .venv, waiting for it …")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def say(text: str) -> None:
    """One line for the user, on stderr like all of the set-up."""
    print(f"PowerServe: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
