"""How far a build is: a live bar on a terminal, a line per tenth of the work elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from powerserve.backend.ggml.build_process import BuildStep, ReportStep


@contextmanager
def step_display() -> Iterator[ReportStep]:
    """Show the steps that are reported, on standard error."""
    if not sys.stderr.isatty():
        yield TenthsDisplay().report
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(step: BuildStep) -> None:
            total = None if step.fraction is None else 1.0
            bar.update(task, description=step.text, total=total, completed=step.fraction or 0.0)

        yield report


class TenthsDisplay:
    """Prints a line at the start and whenever another tenth of the compilation is done."""

    def __init__(self) -> None:
        self._tenths = -1

    def report(self, step: BuildStep) -> None:
        """Print `step` if it is due."""
        tenths = int((step.fraction or 0.0) * 10)
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"{tenths * 10:3} % {step.text}", file=sys.stderr, flush=True)
