"""A picture of a load test: how long its clients waited."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.evaluate.plot_file import check_plot, write_plot
from powerserve.evaluate.server_load.chat_request import ChatRecord
from powerserve.evaluate.server_load.run import LoadRun
from powerserve.evaluate.server_load.summary import first_token_times, gaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE_INCHES = (9.0, 3.6)
_PANELS: Mapping[str, Callable[[Sequence[ChatRecord]], list[float]]] = {
    "time to first token (ms)": first_token_times,
    "gap between tokens (ms)": gaps,
}


def plot_load(runs: Sequence[tuple[str, Sequence[LoadRun]]], path: Path) -> None:
    """Draw the distributions of each server, each with its name. Raises UsageError."""
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(_SIZE_INCHES, layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(_PANELS), sharey=True)
    for panel, (label, times) in zip(panels, _PANELS.items(), strict=True):
        for name, of_server in runs:
            _draw(panel, name, times(_answered(of_server)))
        panel.set_xlabel(label)
        panel.set_xscale("log")
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("share of all")
    panels[0].legend(fontsize="small")
    write_plot(figure, path)


def _answered(runs: Sequence[LoadRun]) -> list[ChatRecord]:
    return [record for run in runs for record in run.records if record.error is None]


def _draw(panel: Axes, name: str, seconds: Sequence[float]) -> None:
    """Which share of the waiting times is at most so long."""
    if seconds:
        panel.ecdf([1000 * each for each in seconds], label=name)
