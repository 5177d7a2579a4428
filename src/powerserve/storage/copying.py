"""Copying files of many gigabytes: with progress, stoppable at any moment, whole or not at all.

Copies are real, never hard links: a workspace can be edited, pushed to a phone or deleted without a
thought for where its models came from. On file systems that share blocks between copies (btrfs,
XFS, APFS on Linux drivers) `copy_file_range` makes them free all the same.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.progress import Advance

BLOCK_BYTES = 16 << 20  # between two reports of progress, and the most that Ctrl-C waits for

# What copy_file_range answers where it does not apply: other file systems, old kernels.
_NO_RANGE_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True, slots=True)
class FileCopy:
    """A file to copy, and where it belongs below the target folder."""

    source: Path
    place: PurePath
    size_bytes: int


def files_below(folder: Path, place: PurePath | None = None) -> list[FileCopy]:
    """The files of a folder and its sub-folders, in order of name; links are followed.

    Hidden entries are left out: `.git`, `.cache` and the like are not part of a model. Raises
    UsageError for a broken link, a device or a folder that contains itself; OSError.
    """
    return list(_walk(folder, place or PurePath(), above=()))


def copy_files(copies: list[FileCopy], target: Path, advance: Advance) -> None:
    """Copy each file to its place below the folder `target`. Raises UsageError, OSError."""
    for copy in copies:
        path = target / copy.place
        path.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(copy, path, advance)


@contextmanager
def file_errors(failure: str) -> Iterator[None]:
    """Turn an OSError into a UsageError: `failure` (a half sentence), the reason, the file."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise UsageError(f"{failure}: {error.strerror or error}{place}") from error


def _walk(folder: Path, place: PurePath, above: tuple[Path, ...]) -> Iterator[FileCopy]:
    real = folder.resolve()
    if real in above:
        raise UsageError(f"{folder} is a link to a folder that contains it")
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, place / path.name, (*above, real))
        elif path.is_file():
            yield FileCopy(path, place / path.name, path.stat().st_size)
        else:
            raise UsageError(f"{path} cannot be copied: it is a broken link or not a file")


def _copy_file(copy: FileCopy, target: Path, advance: Advance) -> None:
    executable = os.stat(copy.source).st_mode & 0o111
    copied = 0
    with (
        copy.source.open("rb") as source,
        atomic.new_file(target, mode=atomic.ORDINARY_MODE | executable) as file,
    ):
        while num_bytes := _copy_block(source.fileno(), file.fileno()):
            copied += num_bytes
            advance(num_bytes)
        if copied != copy.size_bytes:
            raise UsageError(f"{copy.source} changed while it was being copied")


def _copy_block(source: int, target: int) -> int:
    """Copy up to a block between two file descriptors; the bytes copied, 0 at the end."""
    if hasattr(os, "copy_file_range"):
        try:
            if num_bytes := os.copy_file_range(source, target, BLOCK_BYTES):
                return num_bytes
        except OSError as error:
            if error.errno not in _NO_RANGE_COPY:
                raise
    # Also after 0 bytes: some virtual file systems say so though there is more to read.
    block = os.read(source, BLOCK_BYTES)
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(target, rest) :]
    return len(block)
