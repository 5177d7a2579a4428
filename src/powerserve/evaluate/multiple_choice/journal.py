"""What was answered, one JSON object per line, so that a test can be stopped and go on.

    {"benchmark": "mmlu", "model": "smollm2-135m", "choose_by": "logprob", …}
    {"key": "astronomy/3/1f0c…", "subject": "astronomy", "answer": "B", "chosen": "C", "reply": ""}

The first line says what the others are about; the last one may be cut off.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.multiple_choice.chooser import Choice
from powerserve.evaluate.multiple_choice.question import Question
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What must be the same for answers to belong together."""

    benchmark: str
    model: str
    weights: str  # tells models of one name apart; empty: not known
    choose_by: str
    num_examples: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """One line."""

    key: str  # of the question
    subject: str
    answer: str  # the right one
    chosen: str | None
    reply: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the right option was chosen."""
        return self.chosen == self.answer


class Journal:
    """The answers that are there (`answers`, by their question's key), and the file of them."""

    def __init__(self, path: Path, circumstances: Circumstances) -> None:
        """Go on with `path`, or begin it.

        Raises:
            UsageError: its answers come from other circumstances, or it cannot be written.
            ConfigError: it cannot be read, or a line but the last is damaged.
        """
        self.path = path
        self.circumstances = circumstances
        self.answers = {answer.key: answer for answer in self._read()}
        self._write_all()

    def add(self, question: Question, choice: Choice) -> None:
        """Keep an answer. Raises UsageError if it cannot be written."""
        answer = GivenAnswer(
            question.key, question.subject, question.answer, choice.letter, choice.reply
        )
        self.answers[answer.key] = answer
        with file_errors(f"{self.path} cannot be written"), self.path.open("ab") as file:
            file.write(_line(answer))

    def _read(self) -> list[GivenAnswer]:
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be read: {error.strerror}") from None
        if not lines:
            return []
        self._check(lines[0])
        answers: list[GivenAnswer] = []
        for number, line in enumerate(lines[1:], 2):
            try:
                answers.append(msgspec.json.decode(line, type=GivenAnswer))
            except ValueError as error:
                if number < len(lines):
                    raise ConfigError(
                        f"{self.path}: line {number} is damaged: {error}; remove it, and its "
                        "question will be asked again"
                    ) from None
        return answers

    def _check(self, line: bytes) -> None:
        try:
            found = msgspec.json.decode(line, type=Circumstances)
        except ValueError:
            raise ConfigError(
                f"{self.path} does not hold answers of a test; choose another file with -o"
            ) from None
        for name, value in asdict(self.circumstances).items():
            if getattr(found, name) != value:
                raise UsageError(
                    f"{self.path} holds answers with another {name} ({getattr(found, name)!r}, "
                    f"not {value!r}); choose another file with -o, or remove that one"
                )

    def _write_all(self) -> None:
        """Begin the file, or rewrite it without a line that was cut off."""
        lines = [_line(self.circumstances), *map(_line, self.answers.values())]
        with file_errors(f"{self.path} cannot be written"):
            atomic.write_bytes(self.path, b"".join(lines))


def _line(value: Circumstances | GivenAnswer) -> bytes:
    return json.dumps(asdict(value), ensure_ascii=False).encode() + b"\n"
