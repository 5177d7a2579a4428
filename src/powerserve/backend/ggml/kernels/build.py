"""Compile the kernels (native/kernels) with the system's C++ compiler, into the user's cache.

All instruction sets of the architecture are compiled; the library chooses when it is loaded. It is
tried in a child process before it is put in place.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.compiler import compiler_version, find_compiler, run_compiler
from powerserve.backend.ggml.build_cache import make_once, read_records, write_record
from powerserve.backend.ggml.build_process import BuildStep, ReportStep
from powerserve.backend.ggml.kernels import locate
from powerserve.core import machine
from powerserve.core.errors import BackendError

# The same as in native/kernels/CMakeLists.txt. The mathematical functions of the kernels neither
# set errno nor raise exceptions, which lets the compiler vectorise them.
COMPILER_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
LINKER_FLAGS = ("-shared",)
WHAT = "the kernels"


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """A finished build in the cache, as its record describes it."""

    folder: Path
    instruction_sets: tuple[str, ...]
    compiler: str


def build(report: ReportStep, *, waiting: Callable[[], None], force: bool = False) -> Path:
    """The library of a build for this machine, compiled unless it is there (or always: `force`).

    `waiting` is called if another process is building.

    Raises:
        BackendError: there is no compiler or no source, the build failed, or its result does not
            work.
    """
    source = locate.kernel_source()
    if source is None:
        raise BackendError("this installation lacks the kernels' source")
    compiler = find_compiler(os.environ)
    version = compiler_version(compiler)
    target = locate.build_root() / f"{locate.build_key(source)}-{_recipe_digest(version)}"

    def make(folder: Path) -> None:
        library = folder / locate.library_name()
        compile_kernels(compiler, source, library, report)
        names = locate.describe_kernels(library, check=True)
        write_record(folder, {"compiler": version, "instruction_sets": names})

    make_once(target, make, waiting=waiting, force=force)
    return target / locate.library_name()


def kernel_builds() -> list[KernelBuild]:
    """The finished builds in the cache, those for other processors and sources included."""
    return [
        KernelBuild(folder, tuple(record["instruction_sets"]), record["compiler"])
        for folder, record in read_records(locate.build_root()).items()
    ]


def compile_kernels(
    compiler: str,
    source: Path,
    library: Path,
    report: ReportStep,
    linker_flags: Sequence[str] = LINKER_FLAGS,
) -> None:
    """Compile the files in the folder `source` into `library`.

    Raises:
        BackendError: one of them cannot be compiled.
    """
    objects = library.with_suffix(".objects")
    objects.mkdir()
    outputs = {path: objects / f"{path.stem}.o" for path in sorted(source.glob("*.cpp"))}
    commands = {
        path.name: [compiler, *COMPILER_FLAGS, "-c", str(path), "-o", str(output)]
        for path, output in outputs.items()
    }
    _run_all(commands, report)
    report(BuildStep("linking", 1.0))
    inputs = map(str, outputs.values())
    run_compiler([compiler, *linker_flags, *inputs, "-o", str(library)], WHAT)
    shutil.rmtree(objects)


def _run_all(commands: Mapping[str, list[str]], report: ReportStep) -> None:
    """Run compilers, as many at once as there are processors; the first failure ends it."""
    with ThreadPoolExecutor(machine.allowed_cpus()) as pool:
        jobs = {pool.submit(run_compiler, each, WHAT): name for name, each in commands.items()}
        try:
            for num_done, job in enumerate(as_completed(jobs), start=1):
                job.result()
                report(BuildStep(f"compiled {jobs[job]}", num_done / (len(jobs) + 1)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that run come to their end
            raise


def _recipe_digest(version: str) -> str:
    return hashlib.sha256(repr((version, COMPILER_FLAGS, LINKER_FLAGS)).encode()).hexdigest()[:8]
