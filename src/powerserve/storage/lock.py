"""A lock between processes: a file that the operating system locks for its holder.

The system releases the lock when its holder ends, however it ends, so a crash leaves nothing to
clean up. The empty file stays: removing it would let two processes hold two files of one name.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_INTERVAL_S = 0.2


@contextmanager
def exclusive_lock(path: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock at `path` for the duration of the block.

    `waiting` is called once if another process holds it. On file systems without locks the block
    runs unlocked: every writer that uses this also writes to a temporary name and renames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _try_lock(descriptor):
            waiting()
            while not _try_lock(descriptor):
                time.sleep(POLL_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)  # releases the lock


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return error.errno not in (errno.EACCES, errno.EDEADLOCK)
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True
