"""SHA-256 of large files, remembered until the file changes.

A model of many gigabytes takes longer to read than to be found unchanged on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from powerserve.core.errors import ConfigError
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.json_file import read_json, write_json
from powerserve.storage.progress import SILENT, Progress

BLOCK_BYTES = 4 << 20
SHOWN_FROM_BYTES = 500_000_000


@dataclass(frozen=True, slots=True)
class _Known:
    """Digests by what a file looked like: path, size, time of its last change."""

    digests: Mapping[str, str] = field(default_factory=dict)


def file_sha256(path: Path, progress: Progress) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    status = path.stat()
    look = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
    known = _read()
    if look in known:
        return known[look]
    digest = _compute(path, status.st_size, progress)
    _write({key: value for key, value in known.items() if _still_there(key)} | {look: digest})
    return digest


def _compute(path: Path, size_bytes: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    shown = progress if size_bytes >= SHOWN_FROM_BYTES else SILENT
    with path.open("rb") as file, shown.transfer(f"reading {path.name}", size_bytes, 0) as more:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            more(len(block))
    return digest.hexdigest()


def _still_there(look: str) -> bool:
    return Path(look.rsplit(":", maxsplit=3)[0]).exists()


def _file() -> Path:
    return cache_folder() / "deploy" / "digests.json"


def _read() -> Mapping[str, str]:
    try:
        return read_json(_file(), _Known).digests
    except ConfigError:  # there is none yet, or it is damaged: both mean to compute again
        return {}


def _write(digests: Mapping[str, str]) -> None:
    with suppress(OSError):  # then it is computed again the next time
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), {"digests": digests})
