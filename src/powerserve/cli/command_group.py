"""Commands with commands of their own, as `powerserve qnn convert`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType


class CommandGroup:
    """Commands of a group, each in a module `powerserve.cli.<group>_<name>`."""

    def __init__(self, group: str, summaries: Mapping[str, str]) -> None:
        self._group = group
        self._dest = f"{group}_command"
        self._summaries = summaries

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flags of each command."""
        commands = parser.add_subparsers(dest=self._dest, required=True, metavar="COMMAND")
        for name, summary in self._summaries.items():
            module = self._module(name)
            module.configure(
                commands.add_parser(
                    name,
                    help=summary,
                    description=module.__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter,
                    allow_abbrev=False,
                )
            )

    def execute(self, arguments: argparse.Namespace) -> int:
        """Execute the command that was asked for; returns the exit status."""
        status: int = self._module(getattr(arguments, self._dest)).execute(arguments)
        return status

    def _module(self, name: str) -> ModuleType:
        return import_module(f"powerserve.cli.{self._group}_{name.replace('-', '_')}")
