"""The bundle as one compressed file: the same bytes whenever its content is the same.

The format is what a phone's own tools unpack: tar (POSIX.1-1988) in gzip.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tarfile
from pathlib import Path

from powerserve.storage import atomic
from powerserve.storage.progress import Progress

MANIFEST = "manifest.json"


def write_manifest(folder: Path, description: dict[str, object]) -> None:
    """Put a list of all files with their SHA-256 and `description` into `folder`."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in _sorted_paths(folder)
        if path.is_file()
    }
    text = json.dumps(description | {"files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n")


def write_archive(folder: Path, target: Path, progress: Progress) -> None:
    """Write all of `folder` to the archive `target`."""
    paths = _sorted_paths(folder)
    size_bytes = sum(path.stat().st_size for path in paths if path.is_file())
    with (
        progress.transfer("compressing the bundle", size_bytes, 0) as advance,
        atomic.new_file(target) as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for path in paths:
            entry = _entry(path, path.relative_to(folder).as_posix())
            if path.is_dir():
                archive.addfile(entry)
                continue
            with path.open("rb") as content:
                archive.addfile(entry, content)
            advance(entry.size)


def _sorted_paths(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix())


def _entry(path: Path, name: str) -> tarfile.TarInfo:
    """A header without owner, time or the umask of whoever builds."""
    entry = tarfile.TarInfo(name)
    status = path.stat()
    if path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    else:
        entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
    return entry
