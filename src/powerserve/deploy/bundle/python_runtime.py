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
from powerserve.deploy.bundle.elf import ElfFile, is_elf, read_elf
from powerserve.deploy.bundle.elf_check import elf_files
from powerserve.deploy.bundle.wheels import is_idle
from powerserve.storage.progress import Progress

PYTHON = "python3.13"
LOADER = "ld-linux-aarch64.so.1"
ARCHITECTURE = "arm64"
PYTHON_PACKAGES = (f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib")
MODULE_PACKAGES = ("python3-numpy",)
LIBRARY_PACKAGES = (
    *("libblas3", "libc6", "libexpat1", "libffi8", "libgcc-s1", "libgfortran5", "liblapack3"),
    *("libssl3t64", "libstdc++6", "libzstd1", "zlib1g"),
)
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


def unpack_python(root: Path, licences: Path, progress: Progress) -> None:
    """Put the interpreter and its standard library into lib/python below `root`, as PYTHONHOME
    expects them, and the modules that come from Debian into lib/packages.

    Raises:
        BundleError: a package cannot be fetched.
    """
    names = PYTHON_PACKAGES + MODULE_PACKAGES
    for package in debian.fetch_packages(names, ARCHITECTURE, progress):
        for name, entry, content in debian.files_in(package):
            if entry.isreg() and (place := _place(PurePosixPath(name))) is not None:
                _write(root / "lib" / place, content, entry.mode)
        _keep_licence(package, licences)


def add_system_libraries(folder: Path, bundle: Path, licences: Path, progress: Progress) -> None:
    """Copy the loader and all libraries that the files of `bundle` need into `folder`.

    Extension modules of the standard library whose libraries are not in our packages are removed.

    Raises:
        BundleError: a package cannot be fetched, or lacks a library.
    """
    packages = debian.fetch_packages(LIBRARY_PACKAGES, ARCHITECTURE, progress)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        providers = _unpack_libraries(packages, Path(scratch))
        _remove_modules_without(bundle, set(providers))
        for name in sorted(_needed_libraries(bundle, providers)):
            shutil.copy(Path(scratch) / name, folder / name)
    for package in packages:
        _keep_licence(package, licences)


def _place(path: PurePosixPath) -> Path | None:
    """Where a file of Debian's packages belongs below the bundle's lib, if it is wanted."""
    match path.parts:
        case ("usr", "bin", name) if name == PYTHON:
            return Path("python/bin", name)
        case ("usr", "lib", "python3", "dist-packages", *inner) if not is_idle(path):
            return Path("packages", *inner)
        case ("usr", "lib", folder, first, *_) if folder == PYTHON and first not in _IDLE_MODULES:
            is_idle_module = first == "lib-dynload" and path.name.startswith(_IDLE_EXTENSIONS)
            return None if is_idle_module else Path("python", *path.parts[1:])
    return None


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode & 0o777)


def _unpack_libraries(packages: list[Path], folder: Path) -> dict[str, ElfFile]:
    """Write the packages' libraries under the names they are loaded by; returns name -> file."""
    found = {}
    for package in packages:
        for name, entry, content in debian.files_in(package):
            if not entry.isreg() or _LIBRARY_FOLDER not in PurePosixPath(name).parents:
                continue
            path = folder / PurePosixPath(name).name
            _write(path, content, 0o755)
            if is_elf(path) and (file := read_elf(path)).soname is not None:
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


def _keep_licence(package: Path, licences: Path) -> None:
    for name, entry, content in debian.files_in(package):
        if entry.isreg() and PurePosixPath(name).name == "copyright":
            folder = licences / package.name.partition("_")[0]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "copyright").write_bytes(content)
