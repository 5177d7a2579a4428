"""Models on Qualcomm's NPU.

`powerserve qnn COMMAND --help` explains one command.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from types import ModuleType

# Each is a module `powerserve.cli.qnn_<name>` with `configure` and `execute`, as other commands.
COMMANDS = {
    "convert": "make the NPU's files of a model",
    "stat": "find heads and neurons that should stay in floating point",
    "inspect": "describe a context binary",
    "build-helper": "compile the program in which Qualcomm's libraries live",
    "simple-test": "compile small random graphs, run them and time them",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of each command."""
    commands = parser.add_subparsers(dest="qnn_command", required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = _module(name)
        module.configure(
            commands.add_parser(
                name,
                help=summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
                allow_abbrev=False,
            )
        )


def execute(arguments: argparse.Namespace) -> int:
    """Execute the command that was asked for; returns the exit status."""
    status: int = _module(arguments.qnn_command).execute(arguments)
    return status


def _module(name: str) -> ModuleType:
    return import_module(f"powerserve.cli.qnn_{name.replace('-', '_')}")
