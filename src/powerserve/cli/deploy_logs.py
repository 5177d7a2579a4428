"""Print the log of the server on a device."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli.deploy_flags import add_device_flag


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    add_device_flag(parser, "-s")


def execute(arguments: Namespace) -> int:
    """Print the log."""
    from powerserve.deploy.selection import choose_device
    from powerserve.deploy.server import print_log

    print_log(choose_device(arguments.device), follow=arguments.follow)
    return 0
