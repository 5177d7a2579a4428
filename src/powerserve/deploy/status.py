"""What is on a device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from powerserve.core.errors import DeviceError
from powerserve.deploy.device import Device
from powerserve.deploy.installation import free_bytes
from powerserve.deploy.layout import INCOMING, QNN_LIBS, ROOT, VERSIONS, WORKSPACE
from powerserve.deploy.npu import detect_soc
from powerserve.deploy.server import ServerRecord, find_server, stop_server


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """A device and what was deployed to it. Sizes are in bytes, by name."""

    serial: str
    name: str
    soc: str | None
    free_bytes: int
    versions: dict[str, int]
    models: dict[str, int]
    unfinished_bytes: int
    server: ServerRecord | None


def device_status(device: Device) -> DeviceStatus:
    """Look at the device. Raises DeviceError."""
    soc = detect_soc(device)
    return DeviceStatus(
        serial=device.serial,
        name=device.name(),
        soc=soc.title if soc else None,
        free_bytes=free_bytes(device),
        versions=_sizes(device, VERSIONS),
        models=_sizes(device, WORKSPACE),
        unfinished_bytes=sum(_sizes(device, INCOMING).values()),
        server=_reachable_server(device),
    )


def clean(device: Device) -> int:
    """Stop the server and delete all that was deployed; returns the bytes that are freed."""
    stop_server(device)
    places = (VERSIONS, WORKSPACE, INCOMING, QNN_LIBS)
    freed = sum(sum(_sizes(device, place).values()) for place in places)
    device.check(f"rm -rf {ROOT}")
    return freed


def _reachable_server(device: Device) -> ServerRecord | None:
    """The server; its forward is made anew, for it does not survive a pulled cable."""
    server = find_server(device)
    if server is not None:
        device.forward(server.port, server.device_port)
    return server


def _sizes(device: Device, folder: PurePosixPath) -> dict[str, int]:
    """The entries of a folder, "" if it is not there."""
    listing = device.check(f"cd {folder} 2>/dev/null && du -s -k -- * 2>/dev/null; true")
    rows = [line.split(maxsplit=1) for line in listing.splitlines()]
    try:
        return {name: int(kib) * 1024 for kib, name in rows}
    except ValueError:
        raise DeviceError(f"{device.serial} cannot say what is in {folder}") from None
