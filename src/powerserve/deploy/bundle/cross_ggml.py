"""ggml compiled for other processors: one build per level of ARM instructions.

The pinned source package is compiled as `powerserve build-native` does it, by pip (or uv) and the
package's own build system, which is told of another compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from powerserve.backend.ggml import build_process, locate, native_build
from powerserve.backend.ggml.arm_levels import LEVELS, ArmLevel
from powerserve.backend.ggml.build_cache import remove_leftovers
from powerserve.backend.ggml.build_process import ReportStep
from powerserve.backend.ggml.native_build import COMPILER_VARIABLES, Recipe
from powerserve.core.errors import BundleError
from powerserve.deploy.bundle.build_progress import percent
from powerserve.deploy.bundle.elf_check import check_elf_files
from powerserve.deploy.bundle.ggml_source import fetch_ggml_source
from powerserve.deploy.bundle.target import MACHINE
from powerserve.deploy.bundle.toolchain import Toolchain
from powerserve.storage import atomic
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.progress import Progress

# These are opened by name; they find each other by sonames, without further names or links.
LIBRARY_FILES = tuple(f"lib{name}.so" for name in locate.LIBRARIES)
# What the bundle brings along where the device's own libraries are not used.
C_LIBRARIES = frozenset(
    {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-aarch64.so.1"}
)


def build_levels(toolchain: Toolchain, progress: Progress) -> dict[ArmLevel, Path]:
    """The folder of ggml's libraries for each level, compiled unless it is in the cache.

    Raises:
        BundleError: the libraries are not what the device's loader needs.
        BackendError: the build failed.
        DownloadError: the source cannot be fetched.
    """
    root = cache_folder() / "deploy" / "ggml"
    root.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(root / "lock", waiting=lambda: progress.note("waiting for another build")):
        remove_leftovers(root)
        return {level: _build_level(level, toolchain, root, progress) for level in LEVELS}


def recipe_for(level: ArmLevel, toolchain: Toolchain) -> Recipe:
    """What a build for `level` is made by."""
    options = (
        *toolchain.cmake_options,
        "-DGGML_NATIVE=OFF",
        "-DGGML_LLAMAFILE=ON",
        f"-DGGML_CPU_ARM_ARCH={level.march}",
    )
    return Recipe(toolchain.description, options)


def _build_level(level: ArmLevel, toolchain: Toolchain, root: Path, progress: Progress) -> Path:
    recipe = recipe_for(level, toolchain)
    digest = hashlib.sha256(json.dumps([locate.PACKAGE_VERSION, asdict(recipe)]).encode())
    target = root / f"{level.name}-{digest.hexdigest()[:12]}"
    if not target.exists():
        source = fetch_ggml_source(progress)
        with atomic.new_folder(target) as folder:
            with percent(progress, f"compiling ggml for {level.name}") as report:
                _compile(source, recipe, folder, root / f"{level.name}.log", report)
            accept_libraries(folder, toolchain)
    return target


def _compile(archive: Path, recipe: Recipe, folder: Path, log: Path, report: ReportStep) -> None:
    scratch = folder / "scratch"
    with tarfile.open(archive) as source:
        source.extractall(scratch, filter="data")
    package = scratch / "package"
    command = native_build.install_command(package, next(scratch.iterdir()))
    build_process.run(command, _environment(os.environ, recipe, scratch), log, report)
    _take_libraries(package, folder)
    shutil.rmtree(scratch)


def _take_libraries(package: Path, folder: Path) -> None:
    for name in LIBRARY_FILES:
        library = next(package.glob(f"libggml/*/{name}"), None)
        if library is None:
            raise BundleError(f"the build of ggml made no {name}")
        library.rename(folder / name)


def _environment(environment: Mapping[str, str], recipe: Recipe, scratch: Path) -> dict[str, str]:
    """The build's environment: flags meant for this machine's compiler must not reach the other."""
    neutral = {name: value for name, value in environment.items() if name not in COMPILER_VARIABLES}
    # ggml's assertions name their source files: the same text wherever it was compiled.
    flags = f"-ffile-prefix-map={scratch}=."
    return native_build.build_environment(neutral, recipe, scratch) | {
        "CFLAGS": flags,
        "CXXFLAGS": flags,
    }


def accept_libraries(folder: Path, toolchain: Toolchain) -> None:
    """Check libraries for the device, with what they are loaded with: the compiler's own is added.

    Raises:
        BundleError: the device's loader would refuse one.
    """
    if toolchain.runtime_library is not None:
        shutil.copy(toolchain.runtime_library, folder)
    check_elf_files(
        folder,
        machine=MACHINE,
        system_libraries=toolchain.system_libraries or C_LIBRARIES,
        min_alignment=toolchain.min_alignment,
    )
