"""Compile the NPU helper, the small program in which Qualcomm's libraries live.

For this machine that happens by itself when the NPU is first used. For a phone:

  powerserve qnn build-helper --ndk ~/android-ndk -o powerserve-npu-helper
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from powerserve.backend.compiler import find_compiler
from powerserve.backend.qnn.runtime import build
from powerserve.core.errors import UsageError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        *("-o", "--output"), type=Path, metavar="FILE", help="default: one in the user's cache"
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--ndk", type=Path, metavar="DIR", help="for Android, with its NDK")
    choice.add_argument(
        "--compiler", metavar="NAME", help="with another compiler, such as aarch64-linux-gnu-g++"
    )


def execute(arguments: argparse.Namespace) -> int:
    """Compile, and print where the program is."""
    target = arguments.output
    if target is None:
        if arguments.ndk or arguments.compiler:
            raise UsageError("say with -o FILE where the helper for another system shall go")
        target = build.helper_executable()
    elif not target.parent.is_dir():
        raise UsageError(f"-o: there is no folder {target.parent}")
    else:
        build.compile_helper(_compiler(arguments), target.absolute())
    print(target)
    return 0


def _compiler(arguments: argparse.Namespace) -> str:
    if arguments.ndk:
        return build.ndk_compiler(arguments.ndk)
    if not arguments.compiler:
        return find_compiler(os.environ)
    found: str | None = shutil.which(arguments.compiler)
    if found is None:
        raise UsageError(f"--compiler: there is no program {arguments.compiler!r}")
    return found
