"""Files and folders that appear whole or not at all.

Everything is written under a temporary name beside its final name, forced to the disk and renamed.
A temporary name starts with a dot and ends in `.partial`, so that a reader can skip what a killed
process left behind.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX = ".partial"
ORDINARY_MODE = 0o666  # before the umask
EXECUTABLE_MODE = 0o777  # before the umask


def write_bytes(path: Path, data: bytes, *, mode: int = ORDINARY_MODE) -> None:
    """Replace the file `path` by `data`; its folder must exist. Raises OSError."""
    with new_file(path, mode=mode) as file:
        file.write(data)


@contextmanager
def new_file(path: Path, *, mode: int = ORDINARY_MODE) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the block ends without an exception.

    After an exception nothing remains of it and an earlier file under that name is untouched.
    `mode` holds permission bits, from which the umask is taken. Raises OSError.
    """
    partial = partial_path(path)
    try:
        # Not `tempfile`: its files are private (0600) and would stay so under the final name.
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` when the block ends without an exception.

    After an exception nothing remains of it and an earlier folder under that name is untouched.
    The caller syncs the files it writes. A folder cannot be renamed over another, so an earlier
    one is moved aside first: a kill between these two renames leaves it under a `.partial` name.
    Raises OSError.
    """
    partial = partial_path(path)
    partial.mkdir()
    try:
        yield partial
        sync_folder(partial)
        _replace_folder(path, partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(path.parent)


def partial_path(path: Path) -> Path:
    """A fresh temporary name beside `path`, on the same file system."""
    # Bytes, not characters, are what a name is limited to (255): a long name is cut.
    stem = os.fsdecode(os.fsencode(path.name)[:200])
    return path.with_name(f".{stem}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def is_partial(path: Path) -> bool:
    """Whether `path` has the name of an unfinished file or folder."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", path.name, re.DOTALL) is not None


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk: a rename is not safe from power loss before that."""
    if os.name == "nt":  # Windows cannot open a folder, and needs no such call
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace_folder(path: Path, replacement: Path) -> None:
    if not os.path.lexists(path):
        replacement.rename(path)
        return
    earlier = partial_path(path)
    path.rename(earlier)
    try:
        replacement.rename(path)
    except BaseException:
        earlier.rename(path)
        raise
    if earlier.is_dir() and not earlier.is_symlink():
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        earlier.unlink()
