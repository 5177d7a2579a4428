"""Show how far a build has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from powerserve.backend.ggml.build_process import BuildStep, ReportStep
from powerserve.storage.progress import Progress


@contextmanager
def percent(progress: Progress, label: str) -> Iterator[ReportStep]:
    """Show the steps of a build as hundredths; yields what is called with each."""
    with progress.count(label, 100) as advance:
        yield _hundredths(advance)


def _hundredths(advance: Callable[[int], None]) -> ReportStep:
    done = 0

    def report(step: BuildStep) -> None:
        nonlocal done
        now = int(100 * (step.fraction or 0))
        if now > done:
            advance(now - done)
            done = now

    return report
