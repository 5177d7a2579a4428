"""A picture of the scores."""

from __future__ import annotations

from pathlib import Path

from powerserve.evaluate.multiple_choice.score import Scores
from powerserve.evaluate.plot_file import check_plot, write_plot

_WIDTH_INCHES, _ROW_INCHES, _FRAME_INCHES = 7.0, 0.25, 1.2


def plot_scores(scores: Scores, title: str, path: Path) -> None:
    """A bar for each subject, best first, with its 95 % interval. Raises UsageError."""
    check_plot(path)
    from matplotlib.figure import Figure

    ranked = sorted(scores.subjects.items(), key=lambda each: each[1].accuracy)
    height = _FRAME_INCHES + _ROW_INCHES * len(ranked)
    figure = Figure((_WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    accuracies = [score.accuracy for _, score in ranked]
    below = [score.accuracy - score.interval[0] for _, score in ranked]
    above = [score.interval[1] - score.accuracy for _, score in ranked]
    names = [subject.replace("_", " ") for subject, _ in ranked]
    axes.barh(names, accuracies, xerr=[below, above], color="tab:blue", ecolor="tab:gray")
    axes.axvline(scores.total.accuracy, color="tab:red", label=f"all {scores.total.accuracy:.1%}")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of right answers")
    axes.set_title(title, fontsize="medium")
    axes.legend(loc="lower right")
    write_plot(figure, path)
