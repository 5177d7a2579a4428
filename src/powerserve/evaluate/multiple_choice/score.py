"""How many answers were right, and what chance may have done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from powerserve.evaluate.multiple_choice.journal import GivenAnswer
from powerserve.evaluate.multiple_choice.question import ChoiceTest

_Z_95 = 1.959964  # standard deviations to either side that hold 95 % of a normal distribution


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers among some."""

    num_right: int
    num_answers: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.num_right / self.num_answers

    @property
    def interval(self) -> tuple[float, float]:
        """Where the accuracy over endlessly many such questions lies, with 95 % confidence.

        Wilson's score interval (1927), which stays within 0 and 1 for few questions too.
        """
        count, accuracy = self.num_answers, self.accuracy
        scale = 1 + _Z_95**2 / count
        centre = (accuracy + _Z_95**2 / (2 * count)) / scale
        variance = accuracy * (1 - accuracy) / count + _Z_95**2 / (4 * count**2)
        reach = _Z_95 * sqrt(variance) / scale
        return max(0.0, centre - reach), min(1.0, centre + reach)

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "num_right": self.num_right,
            "num_answers": self.num_answers,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """Of each subject, in the order of the questions."""

    subjects: Mapping[str, Score]

    @property
    def total(self) -> Score:
        """Of all questions alike."""
        scores = self.subjects.values()
        return Score(
            sum(score.num_right for score in scores), sum(score.num_answers for score in scores)
        )

    @property
    def mean_accuracy(self) -> float:
        """Of all subjects alike, however many questions they have."""
        return sum(score.accuracy for score in self.subjects.values()) / len(self.subjects)


def score_answers(test: ChoiceTest, answers: Mapping[str, GivenAnswer]) -> Scores:
    """The scores of those questions of the test that have been answered; a reply without a letter
    is a wrong answer."""
    given: dict[str, list[GivenAnswer]] = {}
    for question in test.questions:
        if (answer := answers.get(question.key)) is not None:
            given.setdefault(question.subject, []).append(answer)
    return Scores({subject: _score(each) for subject, each in given.items()})


def _score(answers: Iterable[GivenAnswer]) -> Score:
    right = [answer.is_right for answer in answers]
    return Score(sum(right), len(right))
