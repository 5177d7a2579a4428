"""Compile ggml for this machine, from the source distribution of the pinned wheel.

The package's own build system does the work, started by pip (or uv), so index settings, proxies and
credentials are honoured and cmake and ninja come from the index where the system has none. A build
is tried in a child process before it is put in place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from powerserve.backend.compiler import compiler_version, find_compiler
from powerserve.backend.ggml import build_process, locate
from powerserve.backend.ggml.build_cache import LOG, make_once, read_records, write_record
from powerserve.backend.ggml.build_process import ReportStep
from powerserve.core import machine
from powerserve.core.errors import BackendError

# NATIVE: every instruction this processor has. LLAMAFILE: faster prefill of Q8_0, F16 and F32.
CMAKE_OPTIONS = ("-DGGML_NATIVE=ON", "-DGGML_LLAMAFILE=ON")
# GCC 12's _tile_loadconfig tells the optimiser that it reads 8 of the 64 configuration bytes, so
# stores to the others are removed as dead and the first AMX product ends in a segmentation fault.
AMX_WORKAROUND = "-fno-dse -fno-tree-dse"
# With AVX-512 FP16, ggml's float16 kernels work in steps of 128 elements and do the rest one by
# one: attention with heads of 64 dimensions takes four times as long as with plain AVX-512.
FP16_WORKAROUND = "-mno-avx512fp16"
COMPILER_VARIABLES = ("CC", "CXX", "CFLAGS", "CXXFLAGS", "LDFLAGS")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the outcome of a build, besides ggml's version and the processor."""

    compiler: str  # its path and version line
    options: tuple[str, ...]  # for cmake
    variables: tuple[tuple[str, str], ...] = ()  # environment variables that compilers read

    @property
    def folder_name(self) -> str:
        """The build's name in the cache."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()
        return f"{locate.machine_key()}-{digest[:8]}"


@dataclass(frozen=True, slots=True)
class NativeBuild:
    """A finished build in the cache, as its record describes it."""

    folder: Path
    version: str
    features: tuple[str, ...]
    compiler: str


def build(report: ReportStep, *, waiting: Callable[[], None], force: bool = False) -> Path:
    """The folder of a build for this machine, compiled unless it is there (or always: `force`).

    `waiting` is called if another process is building.

    Raises:
        BackendError: a tool is missing, the build failed, or its result does not work.
    """
    recipe = recipe_for(os.environ)
    target = locate.native_root() / recipe.folder_name
    make_once(target, partial(_build_into, recipe, report), waiting=waiting, force=force)
    return target


def recipe_for(environment: Mapping[str, str]) -> Recipe:
    """The recipe that this machine and the user's environment ask for.

    Raises:
        BackendError: there is no C++ compiler.
    """
    compiler = compiler_in(environment)
    options = (*CMAKE_OPTIONS, *shlex.split(environment.get("CMAKE_ARGS", "")))
    variables = {name: environment[name] for name in COMPILER_VARIABLES if name in environment}
    cpu_flags = machine.cpu_flags()
    if "avx512_fp16" in cpu_flags:
        _add_flags(variables, "CFLAGS", FP16_WORKAROUND)
        _add_flags(variables, "CXXFLAGS", FP16_WORKAROUND)
    if "amx_tile" in cpu_flags and "clang" not in compiler:
        _add_flags(variables, "CXXFLAGS", AMX_WORKAROUND)
    return Recipe(compiler, options, tuple(variables.items()))


def _add_flags(variables: dict[str, str], name: str, flags: str) -> None:
    variables[name] = f"{variables.get(name, '')} {flags}".strip()


def compiler_in(environment: Mapping[str, str]) -> str:
    """The path and version line of the C++ compiler that cmake will find.

    Raises:
        BackendError: there is none.
    """
    if sys.platform == "win32":
        return "MSVC"  # cmake finds Visual Studio by itself, outside PATH
    return compiler_version(find_compiler(environment))


def native_builds() -> list[NativeBuild]:
    """The finished builds in the cache, those for other processors and versions included."""
    return [
        NativeBuild(folder, record["version"], tuple(record["features"]), record["compiler"])
        for folder, record in read_records(locate.native_root()).items()
    ]


def _build_into(recipe: Recipe, report: ReportStep, folder: Path) -> None:
    scratch = folder / "scratch"
    scratch.mkdir()
    command = install_command(scratch / "package")
    environment = build_environment(os.environ, recipe, scratch)
    build_process.run(command, environment, folder.parent / LOG, report)
    _take_libraries(scratch / "package" / "libggml", folder)
    shutil.rmtree(scratch)
    info = locate.describe_library(folder, check_kernels=True)
    write_record(folder, asdict(recipe) | {"version": info.version, "features": info.features})


def install_command(package_folder: Path, source: Path | None = None) -> list[str]:
    """The command that compiles the package into `package_folder`, from `source` if that is given.

    Its cache is off because wheels in it are found again whatever their cmake options were.

    Raises:
        BackendError: there is neither pip nor uv.
    """
    requirement = str(source or f"{locate.PACKAGE}=={locate.PACKAGE_VERSION}")
    what = ["--no-deps", "--no-binary", locate.PACKAGE, "--target", str(package_folder)]
    if importlib.util.find_spec("pip") is not None:
        pip = [sys.executable, "-m", "pip", "install", "--verbose", "--no-input", "--no-cache-dir"]
        return [*pip, *what, requirement]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--no-cache", "--python", sys.executable, *what, requirement]
    raise BackendError("building needs pip or uv; get pip with: python -m ensurepip")


def build_environment(
    environment: Mapping[str, str], recipe: Recipe, scratch: Path
) -> dict[str, str]:
    """`environment` for the build: our options, all processors, temporary files in `scratch`."""
    elsewhere = {"PIP_PREFIX", "PIP_TARGET", "PYTHONPATH"}
    kept = {name: value for name, value in environment.items() if name not in elsewhere}
    ours = {
        "CMAKE_ARGS": shlex.join(recipe.options),
        "CMAKE_BUILD_PARALLEL_LEVEL": str(machine.allowed_cpus()),
        "LC_ALL": "C",  # error lines are recognised by their English words
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_USER": "0",
        "TMPDIR": str(scratch),
    }
    return kept | ours | dict(recipe.variables)


def _take_libraries(package: Path, folder: Path) -> None:
    """Move the libraries out of the installed package; where they are depends on the system."""
    source = next(filter(locate.has_libraries, package.glob("*")), None)
    if source is None:
        raise BackendError(f"the build made no libraries; see {folder.parent / LOG}")
    for entry in source.iterdir():
        if entry.is_file():
            entry.rename(folder / entry.name)
