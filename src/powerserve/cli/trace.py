"""--trace: what the engine does when, in a file."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from powerserve.core.tracing import Tracer


def add_trace_flag(parser: ArgumentParser) -> None:
    """Declare the flag."""
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE.json",
        help="write when each step did what, for ui.perfetto.dev or chrome://tracing",
    )


def tracer_from_flags(
    arguments: Namespace, model: Path | None = None
) -> AbstractContextManager[Tracer]:
    """The tracer that the flag asks for; the file is complete when the context ends.

    Raises UsageError if the file cannot be written, or is `model`.
    """
    from powerserve.cli.output_file import check_target
    from powerserve.core.tracing import tracing

    if arguments.trace is not None:
        check_target(arguments.trace, model)
    return tracing(arguments.trace)
