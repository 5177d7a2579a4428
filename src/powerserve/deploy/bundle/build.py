"""Build a bundle: Python, its packages, PowerServe and ggml for a device, in one archive."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import powerserve
from powerserve.backend.ggml.arm_levels import LEVELS
from powerserve.backend.ggml.locate import PACKAGE_VERSION
from powerserve.backend.qnn.runtime.build import (
    EXECUTABLE,
    compile_helper,
    helper_source,
    ndk_compiler,
)
from powerserve.deploy.bundle import debian
from powerserve.deploy.bundle.archive import write_archive, write_manifest
from powerserve.deploy.bundle.bytecode import compile_python
from powerserve.deploy.bundle.cross_ggml import build_levels, recipe_for
from powerserve.deploy.bundle.cross_kernels import build_kernels, kernels_digest
from powerserve.deploy.bundle.elf_check import check_elf_files
from powerserve.deploy.bundle.python_runtime import PYTHON, add_python, fetch_python
from powerserve.deploy.bundle.target import ANDROID_PAGE_BYTES, MACHINE, Target
from powerserve.deploy.bundle.toolchain import (
    ANDROID_LIBRARIES,
    Toolchain,
    ndk_revision,
    toolchain_for,
)
from powerserve.deploy.bundle.wheels import install_wheels
from powerserve.storage import atomic
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.copying import file_errors
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.progress import SILENT, Progress

PACKAGE_FOLDER = Path(powerserve.__file__).parent
START_FOLDER = Path(__file__).parent / "start"
NUM_KEPT = 3  # bundles per target in the cache


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """How to build."""

    ndk: Path | None = None  # the folder of an unpacked Android NDK
    output: Path | None = None  # where to put the archive, besides the cache
    force: bool = False  # build although nothing changed, with the newest Debian packages


@dataclass(frozen=True, slots=True)
class Parts:
    """What a bundle is made by, besides the files that are the same for all."""

    target: Target
    toolchain: Toolchain
    ndk: Path | None = None

    @property
    def helper_ndk(self) -> Path | None:
        """What compiles the NPU helper, None if it does not go along: it is for Android's own C
        library, as Qualcomm's libraries are."""
        return self.ndk if self.target.has_npu else None


def build_bundle(
    target: Target, options: BundleOptions | None = None, progress: Progress = SILENT
) -> Path:
    """The archive for `target`, built unless there is one of the same inputs in the cache.

    Raises:
        BundleError: a compiler or package is missing, or the result would not run.
        BackendError: ggml does not compile.
        DownloadError: ggml's source cannot be fetched.
        UsageError: the output, or the cache, cannot be written.
    """
    options = options or BundleOptions()
    parts = Parts(target, toolchain_for(target, options.ndk), options.ndk)
    if parts.helper_ndk is not None:
        ndk_compiler(parts.helper_ndk)  # a wrong folder is told before the long work
    folder = cache_folder() / "deploy" / "bundles"
    with file_errors(f"a bundle cannot be built in {folder}"):
        archive = _cached(parts, folder, options.force, progress)
    if options.output is None:
        return archive
    with file_errors(f"cannot write {options.output}"):
        atomic.write_bytes(options.output, archive.read_bytes())
    return options.output


def _cached(parts: Parts, folder: Path, force: bool, progress: Progress) -> Path:
    """The archive in the cache, built if it is not there or if `force` asks for it."""
    name = f"powerserve-{powerserve.__version__}-{parts.target.name}.tar.gz"
    archive = folder / f"{parts.target.name}-{input_hash(parts)[:16]}" / name
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(
        folder / "lock", waiting=lambda: progress.note("waiting for another build")
    ):
        if force:
            debian.forget_packages()
        if force or not archive.exists():
            _build(parts, archive, progress)
            _remove_old(folder, parts.target, archive.parent)
    return archive


def input_hash(parts: Parts) -> str:
    """A digest of all that decides what is built, save the revisions of Debian's packages."""
    recipes = [asdict(recipe_for(level, parts.toolchain)) for level in LEVELS]
    kernels = kernels_digest(parts.toolchain)
    settings: list[object] = [asdict(parts.target), PACKAGE_VERSION, recipes, kernels]
    digest = hashlib.sha256()
    sources = sorted(path for path in PACKAGE_FOLDER.rglob("*") if path.is_file())
    if parts.helper_ndk is not None:
        settings.append(ndk_revision(parts.helper_ndk))
        sources.append(helper_source())
    digest.update(json.dumps(settings).encode())
    for path in sources:
        if "__pycache__" not in path.parts:
            name = os.path.relpath(path, PACKAGE_FOLDER)
            digest.update(f"{name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _build(parts: Parts, archive: Path, progress: Progress) -> None:
    levels = build_levels(parts.toolchain, progress)
    kernels = build_kernels(parts.toolchain, progress)
    with _scratch_folder(archive.parents[1]) as scratch:
        root = scratch / "bundle"
        for level, libraries in levels.items():
            shutil.copytree(libraries, root / "ggml" / level.name)
        shutil.copy(kernels, root / "ggml")
        _add_package(root / "lib/packages")
        packages = _add_python(root, progress) if parts.target.has_python else []
        _add_start(root, parts.target)
        _check(root, parts.toolchain)
        if parts.helper_ndk is not None:
            _add_npu_helper(root / "npu", parts.helper_ndk)
        _describe(root, parts, packages)
        archive.parent.mkdir(exist_ok=True)
        write_archive(root, archive, progress)


@contextmanager
def _scratch_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that is deleted at the end; only with the lock held."""
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)  # a killed build's
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _add_package(packages: Path) -> None:
    """Copy PowerServe itself."""
    unwanted = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(PACKAGE_FOLDER, packages / "powerserve", ignore=unwanted)


def _add_python(root: Path, progress: Progress) -> list[str]:
    """Add Python and all packages; returns which revisions of Debian's they are."""
    progress.note("fetching Python packages")
    install_wheels(root / "lib/packages")
    packages = fetch_python(progress)
    add_python(root, packages)
    home = root / "lib/python"
    compile_python(root, home, [home / "lib" / PYTHON, root / "lib/packages"], progress)
    return [debian.version_of(package) for package in packages]


def _add_start(root: Path, target: Target) -> None:
    (root / "bin").mkdir()
    python = "bundled-python.sh" if target.has_python else "device-python.sh"
    for source, name in (("powerserve.sh", "powerserve"), (python, "python3")):
        script = root / "bin" / name
        script.write_text(f"#!{target.shell}\n{(START_FOLDER / source).read_text()}")
        script.chmod(0o755)


def _add_npu_helper(folder: Path, ndk: Path) -> None:
    """Compile the program that talks to the NPU: it is for Android's own C library."""
    folder.mkdir()
    compile_helper(ndk_compiler(ndk), folder / EXECUTABLE)
    check_elf_files(
        folder,
        machine=MACHINE,
        system_libraries=ANDROID_LIBRARIES,
        min_alignment=ANDROID_PAGE_BYTES,
    )


def _check(root: Path, toolchain: Toolchain) -> None:
    check_elf_files(
        root,
        machine=MACHINE,
        system_libraries=toolchain.system_libraries,
        min_alignment=toolchain.min_alignment,
    )


def _describe(root: Path, parts: Parts, packages: list[str]) -> None:
    write_manifest(
        root,
        {
            "version": powerserve.__version__,
            "target": parts.target.name,
            "ggml": PACKAGE_VERSION,
            "compiler": parts.toolchain.description,
            "debian_packages": packages,
        },
    )


def _remove_old(folder: Path, target: Target, newest: Path) -> None:
    """Delete all but the newest bundles for `target`."""
    others = [path for path in folder.glob(f"{target.name}-*") if path != newest]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in others[NUM_KEPT - 1 :]:
        shutil.rmtree(path, ignore_errors=True)
