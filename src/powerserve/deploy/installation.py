"""Putting bundles and models on a device: whole or not at all, and only what is not there yet."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from powerserve.core.errors import DeviceError
from powerserve.deploy.contents import FolderContents, Payload, payload_of_file
from powerserve.deploy.device import Device
from powerserve.deploy.layout import CONTENTS_FILE, INCOMING, PROGRAM, ROOT, SERVER, VERSIONS
from powerserve.deploy.sending import PIECE_BYTES, Sender
from powerserve.storage.progress import Progress, format_bytes

UNPACK_TIMEOUT_S = 600.0
VERSION_LETTERS = 16  # of the archive's SHA-256


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was built on this machine."""

    archive: Payload
    unpacked_bytes: int

    @classmethod
    def open(cls, path: Path, progress: Progress) -> Bundle:
        """Look at an archive (.tar.gz). Raises UsageError."""
        return cls(payload_of_file(path, progress, "PowerServe"), _unpacked_bytes(path))

    @property
    def folder(self) -> PurePosixPath:
        """Where it is unpacked to on the device."""
        return VERSIONS / self.archive.sha256[:VERSION_LETTERS]

    @property
    def program(self) -> PurePosixPath:
        """The script that starts PowerServe."""
        return self.folder / PROGRAM


def install(
    device: Device,
    bundle: Bundle,
    folders: Sequence[FolderContents],
    progress: Progress,
    *,
    piece_bytes: int = PIECE_BYTES,
) -> None:
    """Make the device have the bundle and these folders; other models stay, old versions go.

    What is there already is not sent again. After an interruption the same call continues, and at
    most `piece_bytes` of a file were sent in vain. Raises DeviceError.
    """
    sender = Sender(device, progress, piece_bytes)
    sender.look()
    needs_bundle = device.run(["test", "-f", str(bundle.program)]).status != 0
    waiting = [each for each in folders if _listing(device, each.target) != each.listing]
    _check_space(device, sender, bundle if needs_bundle else None, waiting)
    if needs_bundle:
        _install_bundle(device, sender, bundle)
    for folder in waiting:
        _install_folder(device, sender, folder)
        sender.look()  # what was installed has left `incoming/`
    _remove_other_versions(device, bundle)


def _listing(device: Device, target: PurePosixPath) -> str:
    """What an installed folder says of itself, "" if it is not there or unfinished."""
    reply = device.run(["cat", str(target / CONTENTS_FILE)])
    return f"{reply.output.strip()}\n" if reply.status == 0 else ""


def _check_space(
    device: Device, sender: Sender, bundle: Bundle | None, folders: Sequence[FolderContents]
) -> None:
    payloads = [payload for each in folders for payload in (*each.large.values(), each.packed)]
    needed = sender.num_missing_bytes(payloads)
    needed += sum(each.packed.size_bytes for each in folders)  # beside what is unpacked of it
    if bundle is not None:
        needed += sender.num_missing_bytes([bundle.archive]) + bundle.unpacked_bytes
    if needed:
        needed += sender.piece_bytes
    free = free_bytes(device)
    if needed > free:
        raise DeviceError(
            f"{device.serial} has {format_bytes(free)} free, but {format_bytes(needed)} are "
            "needed: delete something there (`powerserve deploy clean` deletes all that was "
            "deployed)"
        )


def free_bytes(device: Device) -> int:
    """Free space where we install. Raises DeviceError."""
    lines = device.check(f"df -P -k {ROOT.parent}").splitlines()
    try:
        return int(lines[-1].split()[3]) * 1024
    except (IndexError, ValueError):
        raise DeviceError(f"{device.serial} does not say how much space is free") from None


def _install_bundle(device: Device, sender: Sender, bundle: Bundle) -> None:
    archive = sender.send(bundle.archive)
    unfinished = VERSIONS / ".unfinished"
    sender.progress.note(f"unpacking PowerServe on {device.serial}")
    device.check(
        f"set -e; rm -rf {unfinished}; mkdir -p {unfinished}\n"
        f"tar -xzf {archive} -C {unfinished}\n"
        f"[ -f {unfinished / PROGRAM} ] || {{ echo 'the bundle has no {PROGRAM}'; exit 1; }}\n"
        f"rm -rf {bundle.folder}; mv {unfinished} {bundle.folder}; rm -f {archive}",
        UNPACK_TIMEOUT_S,
    )


def _install_folder(device: Device, sender: Sender, folder: FolderContents) -> None:
    """Assemble the folder beside its place from what was sent and what has not changed."""
    there = _places_by_digest(_listing(device, folder.target), folder.target)
    sources = {
        place: there.get(payload.sha256) or sender.send(payload)
        for place, payload in folder.large.items()
    }
    packed = sender.send(folder.packed)
    unfinished = INCOMING / "folder"
    # From its first move on, the earlier folder is not whole: its list goes before.
    lines = [
        f"set -e; rm -rf {unfinished}; mkdir -p {unfinished}",
        f"tar -xf {packed} -C {unfinished}",
        f"rm -f {_quoted(folder.target / CONTENTS_FILE)}",
        *_moves(sources, unfinished),
        f"chmod -R 755 {unfinished}",  # programs may be among them
        f"mkdir -p {_quoted(folder.target.parent)}; rm -rf {_quoted(folder.target)}",
        f"mv {unfinished} {_quoted(folder.target)}; rm -f {packed}",
    ]
    device.check("\n".join(lines), UNPACK_TIMEOUT_S)


def _moves(sources: Mapping[str, PurePosixPath], folder: PurePosixPath) -> Iterator[str]:
    """Commands that bring each file to its place below `folder`; equal ones have one source."""
    moved: dict[PurePosixPath, PurePosixPath] = {}
    for place, source in sources.items():
        target = folder / place
        yield f"mkdir -p {_quoted(target.parent)}"
        if source in moved:
            yield f"cp {_quoted(moved[source])} {_quoted(target)}"
        else:
            yield f"mv {_quoted(source)} {_quoted(target)}"
            moved[source] = target


def _places_by_digest(listing: str, target: PurePosixPath) -> dict[str, PurePosixPath]:
    digests = json.loads(listing) if listing else {}
    return {digest: target / place for place, digest in digests.items()}


def _remove_other_versions(device: Device, bundle: Bundle) -> None:
    """Versions that nothing runs from."""
    device.check(
        f"cd {VERSIONS}; used=$(cat {SERVER}/version 2>/dev/null)\n"
        f'for v in * .unfinished; do case "$v" in {bundle.folder.name}|"$used") ;; '
        '*) rm -rf "$v" ;; esac; done'
    )


def _quoted(path: PurePosixPath) -> str:
    return shlex.quote(str(path))


def _unpacked_bytes(path: Path) -> int:
    """The size of the tar archive in a gzip file, from its last four bytes (RFC 1952)."""
    with path.open("rb") as file:
        file.seek(-4, 2)
        return int.from_bytes(file.read(4), "little")
