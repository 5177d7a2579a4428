"""Scores as a table or as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from powerserve.cli.markdown import markdown_table
from powerserve.evaluate.multiple_choice.question import ChoiceTest
from powerserve.evaluate.multiple_choice.run import Skipped
from powerserve.evaluate.multiple_choice.score import Score, Scores


def report_text(scores: Scores, test: ChoiceTest, skipped: Skipped) -> str:
    """A table with a line for each subject, and what is not in it."""
    parts = [markdown_table(_rows(scores))] if scores.subjects else ["no question was answered"]
    if len(scores.subjects) > 1:
        parts.append(f"mean of the subjects: {scores.mean_accuracy:.1%}")
    parts += _omissions(test, skipped)
    return "\n\n".join(parts)


def report_json(scores: Scores, test: ChoiceTest, skipped: Skipped) -> dict[str, Any]:
    """Everything as plain data."""
    report: dict[str, Any] = {
        "subjects": {subject: score.as_json() for subject, score in scores.subjects.items()},
        "num_skipped_images": skipped.count,
        "num_skipped_open": test.num_open,
    }
    if scores.subjects:
        report["total"] = scores.total.as_json()
        report["mean_accuracy"] = scores.mean_accuracy
    return report


def _rows(scores: Scores) -> Iterator[list[str]]:
    yield ["subject", "questions", "right", "accuracy", "95 % interval"]
    for subject, score in scores.subjects.items():
        yield _row(subject.replace("_", " "), score)
    yield _row("all questions", scores.total)


def _row(name: str, score: Score) -> list[str]:
    low, high = score.interval
    return [
        name,
        str(score.num_answers),
        str(score.num_right),
        f"{score.accuracy:.1%}",
        f"{low:.1%} to {high:.1%}",
    ]


def _omissions(test: ChoiceTest, skipped: Skipped) -> Iterator[str]:
    if skipped.count:
        yield f"{_questions(skipped.count)} with images left out: {skipped.reason}"
    if test.num_open:
        yield f"{_questions(test.num_open)} without options left out"


def _questions(count: int) -> str:
    return "1 question" if count == 1 else f"{count} questions"
