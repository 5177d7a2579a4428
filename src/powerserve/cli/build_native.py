"""Build ggml for this machine's processor, with all of its instructions.

The prebuilt library runs on any x86-64 processor of the last ten years. One compiled here also uses
AVX-512 and AMX, which speeds prefill up. It takes a minute or two, needs a C++ compiler, and is
used from then on.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from powerserve.backend.ggml import locate, native_build
from powerserve.backend.ggml.build_process import BuildStep, ReportStep


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--force", action="store_true", help="build even if there is a build")
    choice.add_argument("--clean", action="store_true", help="delete the builds")
    choice.add_argument("--status", action="store_true", help="say what there is and what is used")


def execute(arguments: argparse.Namespace) -> int:
    """Build, delete or describe; returns the exit status."""
    if arguments.status:
        print_status()
    elif arguments.clean:
        number = native_build.remove_builds()
        print(f"Deleted {number} build{'' if number == 1 else 's'}.")
    else:
        build(force=arguments.force)
    return 0


def build(*, force: bool) -> None:
    """Build with progress on stderr and print the outcome."""
    started = time.monotonic()
    stop_on_termination()
    try:
        with step_display() as report:
            folder = native_build.build(report, waiting=_tell_waiting, force=force)
    except KeyboardInterrupt:
        print("Stopped; nothing was installed.", file=sys.stderr)
        raise
    info = locate.describe_library(folder)
    print(f"ggml {info.version} for this machine is in {folder}")
    print(f"CPU features: {' '.join(info.features)} ({time.monotonic() - started:.0f} s)")
    if chosen := os.environ.get(locate.ENVIRONMENT_VARIABLE):
        print(f"It is not used as long as {locate.ENVIRONMENT_VARIABLE} is set (to {chosen}).")


def print_status() -> None:
    """Say which library is used and which builds are in the cache."""
    used = locate.describe_library(locate.library_folder())
    print(f"In use: ggml {used.version} ({used.origin}) in {used.folder}")
    print(f"CPU features: {' '.join(used.features)}")
    for one in native_build.native_builds():
        fitting = (
            "" if one.folder.name.startswith(locate.machine_key()) else ", for another machine"
        )
        print(f"Built here: ggml {one.version} in {one.folder} with {one.compiler}{fitting}")
    if used.origin == "wheel":
        print("`powerserve build-native` builds one for this machine.")


@contextmanager
def step_display() -> Iterator[ReportStep]:
    """Show steps as a live bar on a terminal, as one line per tenth of the work elsewhere."""
    if not sys.stderr.isatty():
        yield TenthsDisplay().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(step: BuildStep) -> None:
            total = None if step.fraction is None else 1.0
            bar.update(task, description=step.text, total=total, completed=step.fraction or 0.0)

        yield report


class TenthsDisplay:
    """Prints a line at the start and whenever another tenth of the compilation is done."""

    def __init__(self) -> None:
        self._tenths = -1

    def report(self, step: BuildStep) -> None:
        """Print `step` if it is due."""
        tenths = int((step.fraction or 0.0) * 10)
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"{tenths * 10:3} % {step.text}", file=sys.stderr, flush=True)


def _tell_waiting() -> None:
    print("Another process is building; waiting for it.", file=sys.stderr)


def stop_on_termination() -> None:
    """Let SIGTERM end the build like Ctrl-C, compilers included."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
