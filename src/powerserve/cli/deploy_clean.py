"""Stop the server and delete everything that was deployed to a device."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli.deploy_flags import add_device_flag


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    add_device_flag(parser, "-s")


def execute(arguments: Namespace) -> int:
    """Clean up."""
    from powerserve.deploy.selection import choose_device
    from powerserve.deploy.status import clean
    from powerserve.storage.progress import format_bytes

    device = choose_device(arguments.device)
    freed = clean(device)
    print(f"deleted {format_bytes(freed)} on {device.name()} ({device.serial})")
    return 0
