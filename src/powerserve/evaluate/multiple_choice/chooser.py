"""Who answers questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from powerserve.evaluate.multiple_choice.question import Question


class ChooseBy(StrEnum):
    """How an answer is found."""

    LOGPROB = "logprob"  # the letter that is most likely to follow the question
    GENERATION = "generation"  # the letter that is named in a reply


@dataclass(frozen=True, slots=True)
class Choice:
    """An answer."""

    letter: str | None  # None: the reply names no option
    reply: str = ""  # what was generated, if anything was


class ImagesRefusedError(Exception):
    """Whoever is asked cannot see images; the text says how that is known."""


class Chooser(Protocol):
    """Answers questions."""

    def choose(self, question: Question, examples: Sequence[Question]) -> Choice:
        """Answer a question after these examples. Raises ImagesRefusedError, PowerServeError."""
        ...
