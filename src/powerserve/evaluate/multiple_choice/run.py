"""From questions to answers."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.evaluate.multiple_choice.chooser import Chooser, ImagesRefusedError
from powerserve.evaluate.multiple_choice.journal import Journal
from powerserve.evaluate.multiple_choice.question import ChoiceTest, Question
from powerserve.storage.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Skipped:
    """Questions with images that could not be asked."""

    count: int = 0
    reason: str = ""


def answer_all(
    test: ChoiceTest, chooser: Chooser, journal: Journal, progress: Progress = SILENT
) -> Skipped:
    """Ask what the journal has no answer to yet.

    After one question with images is refused, no other one is asked. Raises PowerServeError.
    """
    missing = [each for each in test.questions if each.key not in journal.answers]
    skipped = Skipped()
    total = len(test.questions)
    with progress.count("questions", total, total - len(missing)) as advance:
        for question in missing:
            if question.images and skipped.reason:
                skipped = Skipped(skipped.count + 1, skipped.reason)
            else:
                reason = _ask(question, test, chooser, journal)
                skipped = Skipped(skipped.count + 1, reason) if reason else skipped
            advance(1)
    return skipped


def _ask(question: Question, test: ChoiceTest, chooser: Chooser, journal: Journal) -> str:
    """Ask one question; why it could not be asked, or nothing."""
    try:
        choice = chooser.choose(question, test.examples.get(question.subject, ()))
    except ImagesRefusedError as refusal:
        return str(refusal)
    journal.add(question, choice)
    return ""
