"""Replace a bundle's Python files by compiled ones, which load faster and are less to transfer.

The compiler must be the same Python as the bundle's: Debian's for this machine, taken from the same
packages, reading the standard library of the bundle itself.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path, PurePosixPath

from powerserve.core.errors import BundleError
from powerserve.deploy.bundle import debian
from powerserve.deploy.bundle.python_runtime import PYTHON
from powerserve.storage.progress import Progress

COMPILER_PACKAGES = (f"{PYTHON}-minimal", "libc6", "libexpat1", "zlib1g")
# A compiled file lies where its source was ("legacy"), as imports without sources need it, and its
# tracebacks name the source in the bundle. One worker, always the same order: the bytes depend on
# what was compiled before.
_PROGRAM = """
import compileall, sys
from py_compile import PycInvalidationMode
root, *folders = sys.argv[1:]
done = [
    compileall.compile_dir(
        folder, maxlevels=30, quiet=1, force=True, stripdir=root, workers=1, legacy=True,
        invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
    )
    for folder in folders
]
sys.exit(not all(done))
"""


def compile_python(root: Path, home: Path, folders: list[Path], progress: Progress) -> None:
    """Compile all Python files in `folders` below `root`, with the standard library in `home`.

    The sources are deleted.

    Raises:
        BundleError: the compiler cannot be fetched, or a file does not compile.
    """
    packages = debian.fetch_packages(COMPILER_PACKAGES, _host_architecture(), progress)
    progress.note("compiling Python files")
    with tempfile.TemporaryDirectory(dir=root.parent) as scratch:
        command = _unpack_compiler(packages, Path(scratch))
        done = subprocess.run(
            [*command, "-B", "-S", "-c", _PROGRAM, str(root), *map(str, folders)],
            env={"PYTHONHOME": str(home), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no reason given"]
        raise BundleError(f"Python files for the device do not compile: {lines[-1]}")
    for folder in folders:
        for source in list(folder.rglob("*.py")):
            source.unlink()


def _host_architecture() -> str:
    """This machine's architecture in Debian's words, such as "amd64"."""
    done = subprocess.run(
        ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def _unpack_compiler(packages: list[Path], folder: Path) -> list[str]:
    """The command that starts Python from these packages; its loader may differ from ours."""
    links = []
    for package in packages:
        for name, entry, content in debian.files_in(package):
            target = folder / PurePosixPath(name).name
            if entry.issym() and ".so" in target.name:
                links.append((target, PurePosixPath(entry.linkname).name))
            elif entry.isreg() and (".so" in target.name or name == f"usr/bin/{PYTHON}"):
                target.write_bytes(content)
                target.chmod(0o755)
    for link, name in links:
        if not link.exists():
            link.symlink_to(name)
    loader = next(folder.glob("ld-linux*"))
    return [str(loader), "--library-path", str(folder), str(folder / PYTHON)]
