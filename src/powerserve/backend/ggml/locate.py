"""Which ggml to use: a folder named by the user, this machine's own build, or the wheel's.

A folder named by the user may hold builds for several levels of ARM processors (arm_levels.py).

The choice is made from file names alone, before anything is loaded: two copies of ggml share their
sonames and must never meet in one process, so a library is described by a child process.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.ggml.arm_levels import best_level_folder
from powerserve.backend.ggml.child import ask_child
from powerserve.core import machine
from powerserve.core.errors import BackendError
from powerserve.storage.cache_folder import cache_folder

ENVIRONMENT_VARIABLE = "POWERSERVE_GGML_DIR"
PACKAGE = "libggml-python"
PACKAGE_VERSION = "0.20.2.post1"  # the pin in pyproject.toml; a test compares them
LIBRARIES = ("ggml-base", "ggml-cpu", "ggml")
RECORD = "build.json"  # describes a native build; written last

# The instruction sets a compiler can use unasked, among the flags that Linux lists. The others
# (mitigations, virtualisation) change with the kernel and must not outdate a build.
_X86_INSTRUCTIONS = re.compile(
    r"sse|ssse3|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|gfni|vaes|vpclmul|3dnow"
)


@dataclass(frozen=True, slots=True)
class LibraryInfo:
    """One ggml build, as a child process that loaded it saw it."""

    folder: Path
    origin: str  # "environment", "native" or "wheel"
    version: str  # ggml's own, such as "0.20.2"
    features: tuple[str, ...]  # CPU features it was built to use, in ggml's names


def library_folder() -> Path:
    """The folder of the ggml libraries to load.

    Raises:
        BackendError: there is none, or the one that the environment names has no libraries.
    """
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        folder = Path(chosen).expanduser()
        folder = best_level_folder(folder, machine.cpu_flags()) or folder
        if not has_libraries(folder):
            raise BackendError(
                f"{ENVIRONMENT_VARIABLE} is {chosen}, but there is no ggml library in that folder; "
                "correct it or unset it"
            )
        return folder
    found = native_folder() or wheel_folder()
    if found is None:
        requirement = f"{PACKAGE}=={PACKAGE_VERSION}"
        raise BackendError(f"the ggml library is missing; install it: pip install {requirement}")
    return found


def wheel_folder() -> Path | None:
    """The libraries inside the installed package, which is found without being imported."""
    spec = importlib.util.find_spec("libggml")
    if spec is None:
        return None
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    candidates = (root / name for root in roots for name in ("lib", "lib64", "bin"))
    return next(filter(has_libraries, candidates), None)


def native_folder() -> Path | None:
    """The newest finished build for this machine's processor and our version of ggml."""
    return next(filter(has_libraries, newest_builds(native_root(), machine_key())), None)


def newest_builds(root: Path, key: str) -> list[Path]:
    """The finished builds in `root` whose names begin with `key`, the newest first."""
    records = root.glob(f"{key}-*/{RECORD}")
    newest_first = sorted(records, key=lambda record: record.stat().st_mtime, reverse=True)
    return [record.parent for record in newest_first]


def native_root() -> Path:
    """The cache folder that holds the builds made by `powerserve build-native`."""
    return cache_folder() / "ggml"


def machine_key() -> str:
    """What a build must match to be used here: our version of ggml and the processor."""
    return f"{PACKAGE_VERSION}-{processor_key()}"


def processor_key() -> str:
    """The processor's architecture and a digest of its instruction sets."""
    digest = hashlib.sha256(" ".join(instruction_sets()).encode()).hexdigest()
    return f"{platform.machine().lower()}-{digest[:8]}"


def instruction_sets() -> list[str]:
    """The processor's instruction sets, sorted; its name where the system lists none."""
    flags = machine.cpu_flags()
    if platform.machine().lower() in ("x86_64", "amd64"):
        flags = frozenset(filter(_X86_INSTRUCTIONS.match, flags))
    return sorted(flags) or [machine.cpu_name()]


def has_libraries(folder: Path) -> bool:
    """Whether all of ggml's libraries are in `folder`."""
    return all(library_file(folder, name) is not None for name in LIBRARIES)


def library_file(folder: Path, name: str) -> Path | None:
    """The file of the library `name` (such as "ggml-base") in `folder`, if there is one."""
    candidates = (folder / file for file in library_file_names(name, sys.platform))
    return next((path for path in candidates if path.is_file()), None)


def library_file_names(name: str, system: str) -> list[str]:
    """What the shared library `name` may be called on `system` (a value of `sys.platform`)."""
    if system == "win32":
        return [f"{name}.dll", f"lib{name}.dll"]
    return [f"lib{name}.dylib"] if system == "darwin" else [f"lib{name}.so"]


def describe_library(folder: Path, *, check_kernels: bool = False) -> LibraryInfo:
    """Load the libraries in `folder` in a child process and say what they are.

    `check_kernels` also multiplies a few matrices with them (half a second).

    Raises:
        BackendError: they do not load, use instructions this machine lacks, or compute wrongly.
    """
    arguments = [str(folder), *(["--kernels"] if check_kernels else [])]
    what = f"the ggml libraries in {folder}"
    answer = ask_child("powerserve.backend.ggml.probe", arguments, what)
    return LibraryInfo(folder, origin_of(folder), answer["version"], tuple(answer["features"]))


def origin_of(folder: Path) -> str:
    """Where the libraries in `folder` came from: "native", "wheel" or "environment"."""
    if (folder / RECORD).is_file():
        return "native"
    return "wheel" if folder == wheel_folder() else "environment"
