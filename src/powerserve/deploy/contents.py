"""What is to be on a device: folders of files, each known by its SHA-256."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from powerserve.core.errors import UsageError
from powerserve.deploy.digests import file_sha256
from powerserve.deploy.layout import CONTENTS_FILE
from powerserve.storage.copying import FileCopy, file_errors
from powerserve.storage.progress import Progress

PACKED_BELOW_BYTES = 1 << 20  # smaller files travel together: each transfer takes its time


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes to send: a file's or those here."""

    label: str  # what the user sees
    content: Path | bytes
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FolderContents:
    """A folder to be on the device: large files by place, all small ones in one tar archive."""

    target: PurePosixPath
    large: Mapping[str, Payload]
    packed: Payload
    listing: str  # JSON: the SHA-256 of every file by its place

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.target.name


def payload_of_file(path: Path, progress: Progress, label: str = "") -> Payload:
    """A file as it is now. Raises UsageError."""
    with file_errors(f"{path} cannot be read"):
        return Payload(label or path.name, path, path.stat().st_size, file_sha256(path, progress))


def payload_of_bytes(data: bytes, label: str) -> Payload:
    """Bytes that are in no file."""
    return Payload(label, data, len(data), hashlib.sha256(data).hexdigest())


def folder_contents(
    target: PurePosixPath,
    copies: list[FileCopy],
    written: Mapping[str, bytes],
    progress: Progress,
) -> FolderContents:
    """The folder `target` with copies of files and with small files that are written anew.

    Raises UsageError for a file that cannot be read.
    """
    large = {
        copy.place.as_posix(): payload_of_file(
            copy.source, progress, f"{target.name}: {copy.place}"
        )
        for copy in copies
        if copy.size_bytes >= PACKED_BELOW_BYTES
    }
    small = dict(written)
    for copy in copies:
        if copy.size_bytes < PACKED_BELOW_BYTES:
            with file_errors(f"{copy.source} cannot be read"):
                small[copy.place.as_posix()] = copy.source.read_bytes()
    digests = {place: payload.sha256 for place, payload in large.items()}
    digests |= {place: hashlib.sha256(data).hexdigest() for place, data in small.items()}
    listing = json.dumps(digests, indent=1, sort_keys=True) + "\n"
    packed = _pack({**small, CONTENTS_FILE: listing.encode()})
    return FolderContents(
        target, large, payload_of_bytes(packed, f"{target.name}: small files"), listing
    )


def _pack(files: Mapping[str, bytes]) -> bytes:
    """A tar archive; equal files make equal archives."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for place in sorted(files):
            member = tarfile.TarInfo(place)
            member.size = len(files[place])
            member.mode = 0o644
            try:
                tar.addfile(member, io.BytesIO(files[place]))
            except ValueError as error:  # longer than the format holds
                raise UsageError(f"the file {place} cannot be sent: {error}") from None
    return archive.getvalue()
