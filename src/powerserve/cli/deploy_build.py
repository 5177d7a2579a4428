"""Build the bundle that is sent to a device: Python, PowerServe and ggml in one archive.

It is made of Debian's packages for ARM, wheels from the package index, and ggml compiled here for
three generations of ARM processors, so it is built on Debian, Ubuntu or a container of theirs, and
needs g++-aarch64-linux-gnu. What was built stays in the cache, as long as nothing it is made of
changes. The archive's path is printed on standard output.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from powerserve.cli.output_file import check_target
from powerserve.deploy.bundle.target import DEFAULT_TARGET, TARGETS, find_target


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--target",
        default=DEFAULT_TARGET.name,
        metavar="NAME",
        help=f"the kind of device: {'; '.join(f'{each.name} ({each.title})' for each in TARGETS)} "
        "(default: %(default)s)",
    )
    parser.add_argument("--ndk", type=Path, metavar="DIR", help="an unpacked Android NDK")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="put a copy of the archive here"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="build again, with the newest revisions of Debian's packages",
    )


def execute(arguments: Namespace) -> int:
    """Build it; returns the exit status."""
    from powerserve.cli.build_native import stop_on_termination
    from powerserve.deploy.bundle.build import BundleOptions, build_bundle
    from powerserve.storage.progress import console_progress, format_bytes

    target = find_target(arguments.target)
    if arguments.output is not None:
        check_target(arguments.output)
    stop_on_termination()
    options = BundleOptions(arguments.ndk, arguments.output, arguments.force)
    archive = build_bundle(target, options, console_progress())
    print(f"{target.title}: {format_bytes(archive.stat().st_size)}", file=sys.stderr)
    print(archive)
    return 0
