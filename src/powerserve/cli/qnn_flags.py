"""Flags that several commands for the NPU share."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from powerserve.backend.qnn.soc import Soc, find_soc, load_socs


def add_soc_flags(parser: ArgumentParser, default: str) -> None:
    """`--soc` and `--soc-table`."""
    group = parser.add_argument_group("SoC")
    group.add_argument(
        "--soc",
        default=default,
        metavar="NAME",
        help=f"what to compile for: 8gen3, 8650, SM8650, Qualcomm's number … (default: {default})",
    )
    group.add_argument(
        "--soc-table",
        type=Path,
        metavar="FILE",
        help="SoCs of your own, in the form of powerserve/backend/qnn/socs.toml",
    )


def soc_from(arguments: Namespace) -> Soc:
    """The SoC that the flags name. Raises a PowerServeError."""
    return find_soc(arguments.soc, load_socs(arguments.soc_table))
