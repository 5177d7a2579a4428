"""Questions with a choice of answers, and tests made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `answer` is the letter of the right option."""

    subject: str
    name: str  # unique within the subject
    text: str
    options: tuple[str, ...]
    answer: str
    images: tuple[Path, ...] = ()  # `<image 1>` in text or options is the first

    @property
    def letters(self) -> str:
        """A letter for each option."""
        return LETTERS[: len(self.options)]

    @property
    def key(self) -> str:
        """Tells the question from every other, also from one of the same name that was changed."""
        content = "\0".join((self.text, *self.options, self.answer))
        return f"{self.subject}/{self.name}/{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class ChoiceTest:
    """Questions, and for each subject examples that show how they are answered."""

    questions: tuple[Question, ...]
    examples: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    num_open: int = 0  # questions without options, which are left out
