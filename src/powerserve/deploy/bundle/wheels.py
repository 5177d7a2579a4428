"""The Python packages of a bundle: wheels for its processor, checked, without what no device needs.

The versions and checksums are in device-requirements.txt, so that every build gets the same files.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path, PurePath

from powerserve.core.errors import BundleError

REQUIREMENTS = Path(__file__).with_name("device-requirements.txt")
PYTHON_VERSION = "3.13"
NEWEST_GLIBC_MINOR = 41  # of the glibc 2 in the bundle
# Tests, headers for compilers, type stubs, tools that only developers use, and an installer's
# notes (which differ from one installation to the next).
_IDLE_FOLDERS = frozenset({"tests", "f2py", "include", "distutils", "_pyinstaller"})
_IDLE_SUFFIXES = frozenset({".pyi", ".pxd", ".pyx", ".h", ".a", ".typed"})
_IDLE_NAMES = frozenset({"RECORD", "INSTALLER", "REQUESTED", "WHEEL", "direct_url.json"})


def install_wheels(folder: Path) -> None:
    """Unpack the wheels into `folder`, with their metadata and licences.

    Raises:
        BundleError: they cannot be fetched, or one is not the file that we know.
    """
    elsewhere = {"PIP_NO_BINARY", "PIP_PREFIX", "PIP_TARGET"}
    environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
    done = subprocess.run(
        _install_command(folder),
        env=environment | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BundleError(f"Python packages for the device cannot be fetched: {_reason(done)}")
    _remove_idle(folder)


def is_idle(path: PurePath) -> bool:
    """Whether a package's file is none that a device uses."""
    in_idle_folder = not _IDLE_FOLDERS.isdisjoint(path.parts[:-1])
    return in_idle_folder or path.suffix in _IDLE_SUFFIXES or path.name in _IDLE_NAMES


def _install_command(folder: Path) -> list[str]:
    what = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", str(folder)]
    what += ["--python-version", PYTHON_VERSION, "--requirement", str(REQUIREMENTS)]
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"]
        minors = range(17, NEWEST_GLIBC_MINOR + 1)
        tags = ["manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in minors)]
        pip += ["--implementation", "cp", *(f"--platform={tag}" for tag in tags)]
        # Some versions of pip compare the wheels with the Python that pip itself runs on.
        return [*pip, "--ignore-requires-python", *what]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", *what, "--python-platform", "aarch64-manylinux_2_40"]
    raise BundleError("building a bundle needs pip or uv; get pip with: python -m ensurepip")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    """The first error in what pip or uv says, else its last line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return [*errors, *lines[-1:], f"exit status {done.returncode}"][0]


def _remove_idle(folder: Path) -> None:
    shutil.rmtree(folder / "bin", ignore_errors=True)  # programs for the computer that builds
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder comes after what is in it
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and is_idle(path.relative_to(folder)):
            path.unlink()
