"""Fetch one file over HTTP: resumed after a cut, verified, and renamed only when it is whole.

The bytes go to `<target>.partial`, which survives Ctrl-C and a lost network: the next attempt asks
for the rest (RFC 9110, section 14: range requests). A file whose SHA-256 differs is discarded.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from powerserve.core.errors import DownloadError
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.network import NETWORK_ERRORS, explain
from powerserve.storage.progress import Advance, Progress, format_bytes

BLOCK_BYTES = 1 << 18
TIMEOUT_S = 30.0
MAX_FRUITLESS_ATTEMPTS = 4  # in a row, each without a single new byte


class DiskError(DownloadError):
    """The trouble is on this machine, so another source would not help."""


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch, and how to know that it arrived whole."""

    url: str
    size_bytes: int
    sha256: str
    headers: Mapping[str, str] = field(default_factory=dict)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def download(
    remote: RemoteFile,
    target: Path,
    *,
    label: str,
    opener: urllib.request.OpenerDirector,
    progress: Progress,
    lock: Path,
) -> None:
    """Fetch `remote` to `target` under the lock file `lock`, unless it is there already.

    Raises DownloadError: unreachable, refused, cut too often, disk full, wrong checksum.
    """
    with (
        disk_errors(target),
        exclusive_lock(
            lock,
            waiting=lambda: progress.note(f"waiting for another process that is fetching {label}"),
        ),
    ):
        if target.exists() and target.stat().st_size == remote.size_bytes:
            return
        partial = target.with_name(target.name + ".partial")
        _check_disk_space(partial, remote.size_bytes)
        with partial.open("ab+") as file:
            found = _Transfer(remote, file, label, opener).run(progress)
        if found != remote.sha256:
            partial.unlink()
            raise DownloadError(
                f"{label} arrived damaged (sha256 {found}, expected {remote.sha256}) and was "
                "discarded; try again, and if it happens again, the source itself is damaged"
            )
        partial.replace(target)


class _Transfer:
    """One download in progress: the open partial file, its digest, and the bytes so far."""

    def __init__(
        self,
        remote: RemoteFile,
        file: BinaryIO,
        label: str,
        opener: urllib.request.OpenerDirector,
    ) -> None:
        self._remote = remote
        self._label = label
        self._file = file
        self._opener = opener
        self._hash: _Hash = hashlib.sha256()
        self._done_bytes = 0

    def run(self, progress: Progress) -> str:
        """Fetch what is missing; returns the SHA-256 of the whole file in hexadecimal."""
        self._take_over_partial()
        with progress.transfer(self._label, self._remote.size_bytes, self._done_bytes) as advance:
            fruitless = 0
            while self._done_bytes < self._remote.size_bytes:
                before = self._done_bytes
                cause = self._attempt(advance)
                fruitless = 0 if self._done_bytes > before else fruitless + 1
                if fruitless == MAX_FRUITLESS_ATTEMPTS:
                    raise DownloadError(self._gave_up(cause))
                if fruitless:
                    time.sleep(0.25 * 2**fruitless)
        self._file.flush()
        return self._hash.hexdigest()

    def _take_over_partial(self) -> None:
        self._file.seek(0)
        while block := self._file.read(BLOCK_BYTES):
            self._hash.update(block)
            self._done_bytes += len(block)
        if self._done_bytes > self._remote.size_bytes:
            self._start_over()

    def _start_over(self) -> None:
        self._file.truncate(0)
        self._hash = hashlib.sha256()
        self._done_bytes = 0

    def _attempt(self, advance: Advance) -> str:
        """Read until the connection ends; returns why it ended (a fragment of a sentence)."""
        try:
            with self._open() as response:
                if self._done_bytes and not _continues_at(response, self._done_bytes):
                    advance(-self._done_bytes)
                    self._start_over()
                self._receive(response, advance)
        except urllib.error.HTTPError as error:
            error.close()
            cause = explain(error, self._remote.url)
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and self._done_bytes:
                advance(-self._done_bytes)
                self._start_over()
            elif error.code < 500 and error.code != http.client.REQUEST_TIMEOUT:
                raise DownloadError(f"cannot fetch {self._label}: {cause}") from error
            return cause
        except NETWORK_ERRORS as error:
            return explain(error, self._remote.url)
        return "the connection was cut"

    def _open(self) -> http.client.HTTPResponse:
        headers = {"Accept-Encoding": "identity", **self._remote.headers}
        if self._done_bytes:
            headers["Range"] = f"bytes={self._done_bytes}-"
        request = urllib.request.Request(self._remote.url, headers=headers)
        response: http.client.HTTPResponse = self._opener.open(request, timeout=TIMEOUT_S)
        return response

    def _receive(self, response: http.client.HTTPResponse, advance: Advance) -> None:
        while self._done_bytes < self._remote.size_bytes and (
            block := response.read(min(BLOCK_BYTES, self._remote.size_bytes - self._done_bytes))
        ):
            with disk_errors(Path(self._file.name)):
                self._file.write(block)
            self._hash.update(block)
            self._done_bytes += len(block)
            advance(len(block))

    def _gave_up(self, cause: str) -> str:
        if not self._done_bytes:
            return f"cannot fetch {self._label}: {cause}"
        return (
            f"cannot fetch all of {self._label}: {cause}; {format_bytes(self._done_bytes)} of "
            f"{format_bytes(self._remote.size_bytes)} are kept, and the same command continues"
        )


def _continues_at(response: http.client.HTTPResponse, offset: int) -> bool:
    """Whether the server answered a range request with the range, not with the whole file."""
    content_range = response.headers.get("Content-Range", "")
    return response.status == http.client.PARTIAL_CONTENT and content_range.startswith(
        f"bytes {offset}-"
    )


def _check_disk_space(partial: Path, size_bytes: int) -> None:
    there = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if free < size_bytes - there:
        raise DiskError(
            f"not enough disk space: {format_bytes(size_bytes - there)} are needed and "
            f"{format_bytes(free)} are free in {partial.parent}"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a failure to write `path` into a DiskError that says where and why."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskError(
                f"the disk is full: free some space for {path.parent} and run the same command "
                "again, which continues where it stopped"
            ) from error
        reason = error.strerror or os.strerror(error.errno or 0)
        raise DiskError(f"cannot write {path}: {reason}") from error
