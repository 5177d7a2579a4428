"""Builds in the user's cache: each is made once, appears whole or not at all, and says what it is.

A build is a folder with a record that is written last; its name says what it was made from and for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from powerserve.backend.ggml.locate import RECORD
from powerserve.core.errors import BackendError
from powerserve.storage import atomic
from powerserve.storage.lock import exclusive_lock

LOCK = "build.lock"
LOG = "build.log"


def make_once(
    target: Path, make: Callable[[Path], None], *, waiting: Callable[[], None], force: bool = False
) -> None:
    """Let `make` fill the folder `target` unless it is there (or always: `force`).

    `waiting` is called if another process is making a build beside it.

    Raises:
        BackendError: files cannot be written there.
    """
    root = target.parent
    try:
        with exclusive_lock(root / LOCK, waiting=waiting):
            if force or not (target / RECORD).exists():
                remove_leftovers(root)
                with atomic.new_folder(target) as folder:
                    make(folder)
    except OSError as error:
        raise BackendError(f"{root} cannot be written: {error}; set XDG_CACHE_HOME") from None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Say what the build in `folder` is, as JSON: it counts as finished from then on."""
    atomic.write_bytes(folder / RECORD, json.dumps(record, indent=2).encode())


def read_records(root: Path) -> dict[Path, dict[str, Any]]:
    """What the finished builds in `root` say about themselves, by folder."""
    records = sorted(root.glob(f"*/{RECORD}"))
    return {record.parent: json.loads(record.read_text()) for record in records}


def remove_builds(root: Path) -> int:
    """Delete all builds and leftovers in `root`; returns how many finished builds there were."""
    if not root.exists():
        return 0
    with exclusive_lock(root / LOCK, waiting=lambda: None):
        folders = [record.parent for record in root.glob(f"*/{RECORD}")]
        for folder in folders:
            shutil.rmtree(folder)
        remove_leftovers(root)
        (root / LOG).unlink(missing_ok=True)
    return len(folders)


def remove_leftovers(root: Path) -> None:
    """Delete what killed builds left in `root`; only with the lock held."""
    for entry in root.iterdir():
        if atomic.is_partial(entry):
            shutil.rmtree(entry, ignore_errors=True)
