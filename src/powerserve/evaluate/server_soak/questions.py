"""What is asked, and what is known about the answers."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

_SUBJECTS = (
    *("France", "Italy", "Japan", "Egypt"),
    *("Canada", "Spain", "Germany", "Greece"),
)
_MARK = re.compile("m[0-9a-f]{7}")
_FILLER = "river stone winter paper garden silver music window"


@dataclass(frozen=True, slots=True)
class Question:
    """A text that no other question has, of another length than the others."""

    text: str  # for chats
    beginning: str  # for completions

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation."""
        return [{"role": "user", "content": self.text}]


class Form(Enum):
    """What shape an answer shall have. All but PLAIN hold a mark that only this request knows."""

    PLAIN = "plain"
    SCHEMA = "json schema"
    TOOL = "tool"
    REGEX = "regex"
    LARK = "lark"
    GBNF = "gbnf"


def questions() -> list[Question]:
    """All questions, the same in every run."""
    return [_question(index, subject) for index, subject in enumerate(_SUBJECTS)]


def _question(num_words: int, subject: str) -> Question:
    words = "".join(f"{word} " for word in _FILLER.split()[:num_words])
    return Question(
        f"{words}What is the capital of {subject}?", f"{words}The capital of {subject} is"
    )


def new_mark(chance: random.Random) -> str:
    """A text that no other request expects in its answer."""
    return f"m{chance.getrandbits(28):07x}"


def find_marks(text: str) -> list[str]:
    """All marks in a text, whosoever they are."""
    return _MARK.findall(text)


def schema_of(mark: str) -> dict[str, Any]:
    """A JSON schema that one object obeys: {"mark": mark}."""
    return {
        "type": "object",
        "properties": {"mark": {"enum": [mark]}},
        "required": ["mark"],
        "additionalProperties": False,
    }
