"""Build what computes for this machine's processor: ggml, and PowerServe's own kernels.

The prebuilt ggml runs on any x86-64 processor of the last ten years. One compiled here also uses
AVX-512 and AMX, which speeds prefill up; it takes a minute or two. The kernels multiply quantised
matrices, where they are faster than ggml's; they take some seconds. Both need a C++ compiler and
are used from then on.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from powerserve.backend.ggml import build_cache, locate, native_build
from powerserve.backend.ggml.build_process import ReportStep
from powerserve.backend.ggml.kernels import build as kernel_build
from powerserve.backend.ggml.kernels import locate as kernel_locate
from powerserve.cli.build_display import step_display
from powerserve.core.errors import BackendError


@dataclass(frozen=True, slots=True)
class Part:
    """Something that is built here."""

    title: str
    root: Callable[[], Path]  # the folder of its builds
    build: Callable[[bool], None]  # argument: even if there is a build
    print_status: Callable[[], None]


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--force", action="store_true", help="build even if there is a build")
    choice.add_argument("--clean", action="store_true", help="delete the builds")
    choice.add_argument("--status", action="store_true", help="say what there is and what is used")
    parser.add_argument("--only", choices=list(PARTS), help="this part alone (default: both)")


def execute(arguments: Namespace) -> int:
    """Build, delete or describe; returns the exit status."""
    parts = [PARTS[arguments.only]] if arguments.only else list(PARTS.values())
    if arguments.status:
        for part in parts:
            part.print_status()
    elif arguments.clean:
        for part in parts:
            number = build_cache.remove_builds(part.root())
            print(f"Deleted {number} build{'' if number == 1 else 's'} of {part.title}.")
    else:
        build(parts, force=arguments.force)
    return 0


def build(parts: Iterable[Part], *, force: bool) -> None:
    """Build each part with progress on stderr and print the outcome.

    Raises:
        BackendError: a part could not be built; the others were.
    """
    stop_on_termination()
    errors = []
    for part in parts:
        try:
            part.build(force)
        except BackendError as error:
            errors.append(str(error))
    if errors:
        raise BackendError("; ".join(dict.fromkeys(errors)))  # both may lack the same compiler


def build_ggml(force: bool) -> None:
    """Build ggml and print the outcome."""
    started = time.monotonic()
    with _shown("ggml") as report:
        folder = native_build.build(report, waiting=_tell_waiting, force=force)
    info = locate.describe_library(folder)
    print(f"ggml {info.version} for this machine is in {folder}")
    print(f"CPU features: {' '.join(info.features)} ({time.monotonic() - started:.0f} s)")
    if chosen := os.environ.get(locate.ENVIRONMENT_VARIABLE):
        print(f"It is not used as long as {locate.ENVIRONMENT_VARIABLE} is set (to {chosen}).")


def build_kernels(force: bool) -> None:
    """Build the kernels and print the outcome."""
    started = time.monotonic()
    with _shown("the kernels") as report:
        library = kernel_build.build(report, waiting=_tell_waiting, force=force)
    names = kernel_locate.describe_kernels(library)
    print(f"PowerServe's kernels for this machine are in {library.parent}")
    print(f"Instruction sets: {' '.join(names)} ({time.monotonic() - started:.0f} s)")
    if (used := kernel_locate.kernel_library()) != library:
        print(f"They are not used as long as there is {used}, which comes first.")


def print_ggml_status() -> None:
    """Say which ggml is used and which builds are in the cache."""
    used = locate.describe_library(locate.library_folder())
    print(f"In use: ggml {used.version} ({used.origin}) in {used.folder}")
    print(f"CPU features: {' '.join(used.features)}")
    for one in native_build.native_builds():
        fitting = _fitting(one.folder, locate.machine_key())
        print(f"Built here: ggml {one.version} in {one.folder} with {one.compiler}{fitting}")
    if used.origin == "wheel":
        print("`powerserve build-native` builds one for this machine.")


def print_kernel_status() -> None:
    """Say which kernels are there and which builds are in the cache."""
    library = kernel_locate.kernel_library()
    if library is None:
        print("There are no kernels of PowerServe's own; `powerserve build-native` builds them.")
    else:
        print(f"In use: the kernels {library}")
        print(f"Instruction sets: {' '.join(kernel_locate.describe_kernels(library))}")
    source = kernel_locate.kernel_source()
    key = kernel_locate.build_key(source) if source else "none"
    for one in kernel_build.kernel_builds():
        fitting = _fitting(one.folder, key)
        print(f"Built here: kernels in {one.folder} with {one.compiler}{fitting}")


def _fitting(folder: Path, key: str) -> str:
    return "" if folder.name.startswith(key) else ", for another machine or version"


PARTS = {
    "ggml": Part("ggml", locate.native_root, build_ggml, print_ggml_status),
    "kernels": Part("the kernels", kernel_locate.build_root, build_kernels, print_kernel_status),
}


@contextmanager
def _shown(title: str) -> Iterator[ReportStep]:
    """Show the steps of a build; say so if it is stopped."""
    try:
        with step_display() as report:
            yield report
    except KeyboardInterrupt:
        print(f"Stopped building {title}; nothing was installed.", file=sys.stderr)
        raise


def _tell_waiting() -> None:
    print("Another process is building; waiting for it.", file=sys.stderr)


def stop_on_termination() -> None:
    """Let SIGTERM end the build like Ctrl-C, compilers included."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
