"""Run PowerServe on a phone, or another device that adb or hdc reaches.

powerserve deploy run MODEL -p "…"    an answer from the device
powerserve deploy serve MODEL         a server there, and a port here that leads to it
powerserve deploy build               the bundle that is sent there
"""

from __future__ import annotations

import argparse
from types import ModuleType

from powerserve.cli import (
    deploy_build,
    deploy_clean,
    deploy_logs,
    deploy_run,
    deploy_serve,
    deploy_status,
    deploy_stop,
)

ACTIONS: dict[str, tuple[ModuleType, str]] = {
    "run": (deploy_run, "answer one prompt on the device"),
    "serve": (deploy_serve, "start a server on the device"),
    "status": (deploy_status, "say what is on the device"),
    "logs": (deploy_logs, "print the server's log"),
    "stop": (deploy_stop, "stop the server"),
    "clean": (deploy_clean, "delete everything that was deployed"),
    "build": (deploy_build, "build the bundle, without a device"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of each action."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, (module, summary) in ACTIONS.items():
        module.configure(
            actions.add_parser(
                name,
                help=summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )


def execute(arguments: argparse.Namespace) -> int:
    """Do what is asked for; returns the exit status."""
    module, _ = ACTIONS[arguments.action]
    status: int = module.execute(arguments)
    return status
