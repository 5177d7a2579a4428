"""A picture of a search: how each parameter bears on the speed."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.evaluate.plot_file import check_plot, write_plot
from powerserve.evaluate.tree_search.ranking import RankedPoint, Ranking
from powerserve.speculative.options import TreeParams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 3
_PANEL_INCHES = (4.0, 3.0)


def plot_ranking(ranking: Ranking, path: Path) -> None:
    """Write the plot. Raises UsageError if that is not possible."""
    check_plot(path)
    write_plot(_figure(ranking), path)


def _figure(ranking: Ranking) -> Figure:
    from matplotlib.figure import Figure

    names = varied_parameters(ranking)
    num_columns = min(len(names), _COLUMNS)
    num_rows = -(-len(names) // _COLUMNS)
    width, height = _PANEL_INCHES
    figure = Figure((num_columns * width, num_rows * height), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharey=True)
    for panel, name in zip(panels.flat, names, strict=False):
        _draw(panel, ranking, name)
    for panel in panels.flat[len(names) :]:
        panel.remove()
    for row in panels:
        row[0].set_ylabel("tokens/s")
    figure.suptitle(_title(ranking), fontsize="medium")
    return figure


def _title(ranking: Ranking) -> str:
    """What the markers mean, and what they are to be compared with."""
    parts = [f"best (●) {ranking.best.tokens_per_s:.1f}"]
    if ranking.defaults:
        parts.append(f"defaults (×) {ranking.defaults[0].tokens_per_s:.1f}")
    if ranking.plain_tokens_per_s is not None:
        parts.append(f"no speculation {ranking.plain_tokens_per_s:.1f}")
    return ", ".join(parts) + " tokens/s"


def varied_parameters(ranking: Ranking) -> list[str]:
    """Fields of `TreeParams` that have more than one value; the tree's size if none has."""
    names = [each.name for each in fields(TreeParams)]
    varied = [name for name in names if len(_by_value(ranking, name)) > 1]
    return varied or ["draft_batch_size"]


def _draw(panel: Axes, ranking: Ranking, name: str) -> None:
    """One parameter: a box over the points of each value, the best point and the defaults."""
    groups = _by_value(ranking, name)
    values = sorted(groups)
    speeds = [[point.tokens_per_s for point in groups[value]] for value in values]
    panel.boxplot(speeds, tick_labels=[f"{value:g}" for value in values], showfliers=False)
    for points, marker, colour in (
        ([ranking.best], "o", "tab:green"),
        (ranking.defaults, "x", "tab:red"),
    ):
        places = [values.index(getattr(point.params, name)) + 1 for point in points]
        panel.plot(places, [point.tokens_per_s for point in points], marker, color=colour)
    panel.set_xlabel(name)


def _by_value(ranking: Ranking, name: str) -> dict[float, list[RankedPoint]]:
    groups: dict[float, list[RankedPoint]] = {}
    for point in ranking.points:
        groups.setdefault(getattr(point.params, name), []).append(point)
    return groups
