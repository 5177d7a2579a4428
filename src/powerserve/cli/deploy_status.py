"""Say what is on a device: program, models, the server, free space."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from powerserve.cli.deploy_flags import add_device_flag

if TYPE_CHECKING:
    from powerserve.deploy.status import DeviceStatus


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    add_device_flag(parser, "-s")


def execute(arguments: Namespace) -> int:
    """Look at the device and print it."""
    from powerserve.deploy.selection import choose_device
    from powerserve.deploy.status import device_status

    status = device_status(choose_device(arguments.device))
    if arguments.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        _print(status)
    return 0


def _print(status: DeviceStatus) -> None:
    from powerserve.storage.progress import format_bytes

    print(f"device    {status.name} ({status.serial})")
    print(f"NPU of    {status.soc or 'no SoC that is known'}")
    print(f"free      {format_bytes(status.free_bytes)}")
    for version, size in status.versions.items():
        print(f"program   {version} ({format_bytes(size)})")
    for model, size in status.models.items():
        print(f"model     {model} ({format_bytes(size)})")
    if status.unfinished_bytes:
        print(f"partly    {format_bytes(status.unfinished_bytes)} of an interrupted deployment")
    if status.server is None:
        print("server    not running")
    else:
        print(f"server    {status.server.model} at {status.server.url}")
