"""Which library of kernels to use: one named by the user, one beside ggml, one built here, or that
of an installed package.

The choice is made from file names and the kernels' source alone; nothing is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

from powerserve.backend.ggml import locate
from powerserve.backend.ggml.child import ask_child
from powerserve.backend.native_source import native_source
from powerserve.core.errors import BackendError
from powerserve.storage.cache_folder import cache_folder

ENVIRONMENT_VARIABLE = "POWERSERVE_KERNELS"
LIBRARY = "powerserve-kernels"
MODULE = "powerserve_kernels"  # of the distribution that native/kernels makes


def kernel_library(ggml_folder: Path | None = None) -> Path | None:
    """The file of the kernels to use with the ggml libraries in a folder (default: those in use).

    Raises:
        BackendError: the environment names a file that is not there, or there is no ggml.
    """
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return _named_library(chosen)
    folder = ggml_folder or locate.library_folder()
    return _library_beside(folder) or built_library() or packaged_library()


def built_library() -> Path | None:
    """The newest build in the user's cache of our own source, for this processor."""
    source = kernel_source()
    if source is None:
        return None
    builds = locate.newest_builds(build_root(), build_key(source))
    return next(filter(None, (locate.library_file(each, LIBRARY) for each in builds)), None)


def packaged_library() -> Path | None:
    """The library in an installed package, which is found without being imported."""
    spec = importlib.util.find_spec(MODULE)
    folders = spec.submodule_search_locations or () if spec else ()
    files = (locate.library_file(Path(folder), LIBRARY) for folder in folders)
    return next(filter(None, files), None)


def kernel_source() -> Path | None:
    """The folder of the kernels' source, which comes with the package."""
    return native_source("kernels")


def build_root() -> Path:
    """The cache folder of the kernels that were built here."""
    return cache_folder() / "kernels"


def build_key(source: Path) -> str:
    """What a build must match to be used: the source and the processor, whatever the compiler."""
    digest = hashlib.sha256()
    for path in sorted((*source.glob("*.cpp"), *source.glob("*.h"))):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return f"{digest.hexdigest()[:12]}-{locate.processor_key()}"


def library_name() -> str:
    """The file name of the library on this system."""
    return locate.library_file_names(LIBRARY, sys.platform)[0]


def describe_kernels(library: Path, *, check: bool = False) -> tuple[str, ...]:
    """The instruction sets that a library serves here, best first, asked in a child process.

    `check` also multiplies matrices of every type with each of them (half a second).

    Raises:
        BackendError: the library does not load, does not fit this processor, or computes wrongly.
    """
    arguments = [str(library), *(["--check"] if check else [])]
    names = ask_child("powerserve.backend.ggml.kernels.probe", arguments, f"the kernels {library}")
    return tuple(names)


def _library_beside(ggml_folder: Path) -> Path | None:
    """In the same folder, or in the one of several builds of ggml, as bundles have it."""
    folders = (ggml_folder, ggml_folder.parent)
    return next(filter(None, (locate.library_file(each, LIBRARY) for each in folders)), None)


def _named_library(chosen: str) -> Path:
    library = Path(chosen).expanduser()
    if library.is_file():
        return library.absolute()  # a bare name would be looked for in the system's folders
    raise BackendError(
        f"{ENVIRONMENT_VARIABLE} is {chosen}, but there is no such file; correct it or unset it"
    )
