"""Stop the server on a device; answers under way are finished first."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli.deploy_flags import add_device_flag


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    add_device_flag(parser, "-s")


def execute(arguments: Namespace) -> int:
    """Stop it."""
    from powerserve.deploy.selection import choose_device
    from powerserve.deploy.server import stop_server

    device = choose_device(arguments.device)
    done = "stopped" if stop_server(device) else "not running"
    print(f"server    {done} on {device.name()} ({device.serial})")
    return 0
