"""MMLU's files (Hendrycks et al. 2021, https://github.com/hendrycks/test).

    test/<subject>_test.csv    the questions
    dev/<subject>_dev.csv      five examples of each subject

A line is `question, A, B, C, D, letter of the right one`, without a heading.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.multiple_choice.question import ChoiceTest, Question

_SOURCE = (
    "MMLU is data.tar at https://people.eecs.berkeley.edu/~hendrycks/; unpack it and name the "
    "folder that has dev/ and test/ with --dataset"
)
_NUM_OPTIONS = 4


def read_mmlu(
    folder: Path, *, num_questions: int = 0, num_examples: int = 0, subjects: Sequence[str] = ()
) -> ChoiceTest:
    """The first `num_questions` (0: all) of each subject, or of some, and as many examples.

    Raises UsageError if the folder or a subject is not there, ConfigError for a damaged file.
    """
    files = _files(folder, subjects)
    questions: list[Question] = []
    for subject, path in files.items():
        questions += _read(path, subject)[: num_questions or None]
    examples = {subject: _examples(folder, subject, num_examples) for subject in files}
    return ChoiceTest(tuple(questions), examples)


def _files(folder: Path, subjects: Sequence[str]) -> dict[str, Path]:
    """The tests of the wanted subjects."""
    found = {
        path.name.removesuffix("_test.csv"): path
        for path in sorted((folder / "test").glob("*_test.csv"))
    }
    if not found:
        raise UsageError(f"there is no MMLU in {folder} (no test/*_test.csv); {_SOURCE}")
    if unknown := set(subjects) - found.keys():
        raise UsageError(
            f"there is no subject {min(unknown)!r} in {folder}; there are {', '.join(found)}"
        )
    return {name: path for name, path in found.items() if not subjects or name in subjects}


def _examples(folder: Path, subject: str, count: int) -> tuple[Question, ...]:
    if not count:
        return ()
    examples = tuple(_read(folder / "dev" / f"{subject}_dev.csv", subject)[:count])
    if len(examples) < count:
        raise UsageError(
            f"there are only {len(examples)} examples for {subject}; ask for fewer with "
            "--num-examples"
        )
    return examples


def _read(path: Path, subject: str) -> list[Question]:
    questions: list[Question] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for number, row in enumerate(rows, 1):
                questions.append(_question(row, subject, number))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; {_SOURCE}") from None
    except (ValueError, csv.Error) as error:
        number = len(questions) + 1
        raise ConfigError(f"{path}: question {number} is damaged: {error}") from None
    return questions


def _question(row: list[str], subject: str, number: int) -> Question:
    """Raises ValueError."""
    if len(row) != _NUM_OPTIONS + 2:
        raise ValueError(f"it has {len(row)} fields instead of {_NUM_OPTIONS + 2}")
    text, *options, answer = (field.strip() for field in row)
    question = Question(subject, str(number), text, tuple(options), answer)
    if len(answer) != 1 or answer not in question.letters:
        raise ValueError(f"its answer is {answer!r}, not one of {question.letters}")
    return question
