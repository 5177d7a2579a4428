"""Sending files so that a pulled cable costs little: in pieces, continued where they ended.

A payload lies in `incoming/` under its SHA-256: as `<sha256>.partial` while it grows, as `<sha256>`
once the device has computed that sum over all of it. Pieces are appended, so that what is there is
always a beginning of the payload, and its length says where to go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from powerserve.core.errors import DeviceError
from powerserve.deploy.contents import Payload
from powerserve.deploy.device import COMMAND_TIMEOUT_S, Device
from powerserve.deploy.layout import INCOMING
from powerserve.storage.copying import file_errors
from powerserve.storage.progress import Progress

PIECE_BYTES = 32 << 20
SLOWEST_BYTES_PER_S = 20_000_000  # at which a device reads its own flash

_ENTRY = re.compile(r"(\d+) (\S+)")


@dataclass
class Sender:
    """Sends payloads to one device."""

    device: Device
    progress: Progress
    piece_bytes: int
    _there: dict[str, int] = field(default_factory=dict)  # sizes in `incoming/` by name

    def look(self) -> None:
        """See what an earlier attempt has left."""
        listing = self.device.check(
            f"mkdir -p {INCOMING} && cd {INCOMING} && rm -f *.piece && {_LIST}"
        )
        self._there = {name: int(size) for size, name in _ENTRY.findall(listing)}

    def num_missing_bytes(self, payloads: Iterable[Payload]) -> int:
        """What is still to be sent of these."""
        return sum(each.size_bytes - self._num_sent(each) for each in payloads)

    def send(self, payload: Payload) -> PurePosixPath:
        """Bring a payload to the device; returns where it lies. Raises DeviceError."""
        final = INCOMING / payload.sha256
        if final.name in self._there:
            return final
        partial = INCOMING / f"{payload.sha256}.partial"
        self._send_pieces(payload, partial)
        self._verify(payload, partial)
        self.device.check(f"mv {partial} {final}")
        self._there[final.name] = payload.size_bytes
        return final

    def _num_sent(self, payload: Payload) -> int:
        whole = self._there.get(payload.sha256)
        sent = self._there.get(f"{payload.sha256}.partial", 0) if whole is None else whole
        return min(sent, payload.size_bytes)

    def _send_pieces(self, payload: Payload, partial: PurePosixPath) -> None:
        done = self._num_sent(payload)
        with self.progress.transfer(payload.label, payload.size_bytes, done) as advance:
            if done == 0 and payload.size_bytes <= self.piece_bytes:
                self._push_whole(payload, partial)
                advance(payload.size_bytes)
                return
            for piece in _pieces(payload, done, self.piece_bytes):
                self._append(piece, partial)
                advance(len(piece))

    def _push_whole(self, payload: Payload, partial: PurePosixPath) -> None:
        """Under another name first: what is cut off here need not be a beginning."""
        arriving = partial.with_suffix(".piece")
        if isinstance(payload.content, Path):
            self.device.push(payload.content, arriving)
        else:
            self.device.push_bytes(payload.content, arriving)
        self.device.check(f"mv {arriving} {partial}")

    def _append(self, piece: bytes, partial: PurePosixPath) -> None:
        arriving = partial.with_suffix(".piece")
        self.device.push_bytes(piece, arriving)
        self.device.check(f"cat {arriving} >> {partial} && rm {arriving}")

    def _verify(self, payload: Payload, partial: PurePosixPath) -> None:
        timeout_s = COMMAND_TIMEOUT_S + payload.size_bytes / SLOWEST_BYTES_PER_S
        found = self.device.check(f"sha256sum {partial}", timeout_s).split()
        if not found or found[0] != payload.sha256:
            self.device.check(f"rm -f {partial}")
            raise DeviceError(
                f"{payload.label} arrived damaged on {self.device.serial} and was deleted there: "
                "run the command again, if need be with another cable"
            )


_LIST = 'for f in *; do [ -f "$f" ] && stat -c "%s %n" "$f"; done; true'


def _pieces(payload: Payload, start: int, piece_bytes: int) -> Iterator[bytes]:
    if isinstance(payload.content, bytes):
        for offset in range(start, payload.size_bytes, piece_bytes):
            yield payload.content[offset : offset + piece_bytes]
        return
    with file_errors(f"{payload.content} cannot be read"), payload.content.open("rb") as file:
        file.seek(start)
        while piece := file.read(piece_bytes):
            yield piece
