"""A Python that needs nothing of the device but its kernel.

It is Debian's, with the C library and the loader it was built for, so that a phone runs it as any
Linux machine would. Only the shared libraries that something in the bundle needs come along. numpy
is Debian's too: the wheel brings 25 MB of OpenBLAS, and ggml does our arithmetic.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path, PurePosixPath

from powerserve.core.errors import BundleError
from powerserve.deploy.bundle import debian
from powerserve.deploy.bundle.elf import ElfFile, read_elf
from powerserve.deploy.bundle.elf_check import elf_files
from powerserve.deploy.bundle.wheels import PYTHON_VERSION, is_idle
from powerserve.storage.progress import Progress

PYTHON = f"python{PYTHON_VERSION}"
LOADER = "ld-linux-aarch64.so.1"
PACKAGES = (
    *(f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib", "python3-numpy"),
    # Of these, only the libraries that something needs.
    *("libblas3", "libc6", "libexpat1", "libffi8", "libgcc-s1", "libgfortran5", "liblapack3"),
    *("libssl3t64", "libstdc++6", "libzstd1", "zlib1g"),
)
_ARCHITECTURE = "arm64"
_LIBRARY_FOLDER = PurePosixPath("usr/lib/aarch64-linux-gnu")
# Loaded by name while Python runs, so that no file lists it: the unwinder that ends threads.
LOADED_BY_NAME = ("libgcc_s.so.1",)
# Parts of the standard library that no command of ours uses, most of which need a terminal, a
# window or a database.
_IDLE_MODULES = frozenset(
    {
        *("_pyrepl", "curses", "dbm", "ensurepip", "idlelib", "pydoc_data", "sqlite3", "tkinter"),
        *("test", "turtle.py", "turtledemo", "venv", "xmlrpc", "sitecustomize.py"),
    }
)
# Modules for Python's own tests, and encodings of East Asian texts that are not Unicode.
_IDLE_EXTENSIONS = ("_test", "_ctypes_test", "_xxtest", "xxlimited", "xxsubtype", "_codecs_")


def fetch_python(progress: Progress) -> list[Path]:
    """Debian's packages that the bundle's Python is made of. Raises BundleError."""
    return debian.fetch_packages(PACKAGES, _ARCHITECTURE, progress)


def add_python(bundle: Path, packages: list[Path]) -> None:
    """Add the interpreter, its library, numpy, and what the bundle's files need of the system.

    Below `bundle` that is lib/python (PYTHONHOME), lib/packages, lib/system, and the packages'
    licences. Extension modules of the standard library whose libraries are in none of the packages
    are left out.

    Raises:
        BundleError: a package is damaged, or lacks what must be in it.
    """
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        libraries = Path(scratch)
        for package in packages:
            _unpack(package, bundle, libraries)
        providers = _by_soname(libraries)
        _remove_modules_without(bundle, set(providers))
        system = bundle / "lib/system"
        system.mkdir(parents=True)
        for name in sorted(_needed_libraries(bundle, providers)):
            shutil.copy(libraries / name, system / name)


def _unpack(package: Path, bundle: Path, libraries: Path) -> None:
    """Put the package's files where they belong, and all its shared libraries into one folder."""
    for name, entry, content in debian.files_in(package):
        path = PurePosixPath(name)
        if not entry.isreg():
            continue
        if _LIBRARY_FOLDER in path.parents:
            _write(libraries / path.name, content, 0o755)
        elif (place := _place(path)) is not None:
            _write(bundle / place, content, entry.mode)


def _place(path: PurePosixPath) -> Path | None:
    """Where a file of Debian's packages belongs in the bundle, if it is wanted."""
    match path.parts:
        case ("usr", "share", "doc", package, "copyright"):
            return Path("licences", package, "copyright")
        case ("usr", "bin", name) if name == PYTHON:
            return Path("lib/python/bin", name)
        case ("usr", "lib", "python3", "dist-packages", *inner) if not is_idle(path):
            return Path("lib/packages", *inner)
        case ("usr", "lib", folder, first, *_) if folder == PYTHON and first not in _IDLE_MODULES:
            is_idle_module = first == "lib-dynload" and path.name.startswith(_IDLE_EXTENSIONS)
            return None if is_idle_module else Path("lib/python", *path.parts[1:])
    return None


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode & 0o777)


def _by_soname(folder: Path) -> dict[str, ElfFile]:
    """Rename the libraries to what they are loaded by; returns name -> file."""
    found = {}
    for path, file in elf_files(folder).items():
        if file.soname is not None:
            path.replace(folder / file.soname)
            found[file.soname] = file
    return found


def _remove_modules_without(bundle: Path, libraries: set[str]) -> None:
    """Delete extension modules of the standard library that need a library we do not bring."""
    for path in sorted(bundle.glob(f"**/lib/{PYTHON}/lib-dynload/*.so")):
        if not libraries.issuperset(read_elf(path).needed):
            path.unlink()


def _needed_libraries(bundle: Path, providers: dict[str, ElfFile]) -> set[str]:
    """The system libraries that files of `bundle` need, and those that these need in turn."""
    wanted = {LOADER, *LOADED_BY_NAME}
    waiting = [name for file in elf_files(bundle).values() for name in file.needed]
    while waiting:
        name = waiting.pop()
        if name not in wanted and name in providers:
            wanted.add(name)
            waiting += providers[name].needed
    if absent := wanted - providers.keys():
        raise BundleError(f"Debian's packages hold no {', '.join(sorted(absent))}")
    return wanted
