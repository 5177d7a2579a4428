"""Questions about images, with the fields of MMMU (Yue et al. 2023, https://mmmu-benchmark.github.io).

A folder holds a file of JSON lines for each subject, `<subject>.jsonl`:

    {"id": "1", "question": "What is shown in <image 1>?", "options": ["a cat", "a dog"],
     "answer": "B", "image_1": "images/1.png"}

Images are files beside it. A question without options is an open one, which is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.multiple_choice.question import LETTERS, ChoiceTest, Question

_SOURCE = (
    "MMMU is MMMU/MMMU on Hugging Face; docs/evaluation.md says what the folder that --dataset "
    "names has to look like"
)
_MAX_IMAGES = 7
_OPEN = "open"


class _Line(msgspec.Struct):
    question: str
    answer: str
    id: str = ""
    options: list[str] | str = msgspec.field(default_factory=list)
    question_type: str = "multiple-choice"
    image_1: str | None = None
    image_2: str | None = None
    image_3: str | None = None
    image_4: str | None = None
    image_5: str | None = None
    image_6: str | None = None
    image_7: str | None = None


def read_mmmu(folder: Path, *, num_questions: int = 0, subjects: Sequence[str] = ()) -> ChoiceTest:
    """The first `num_questions` (0: all) of each subject, or of some.

    Raises UsageError if the folder or a subject is not there, ConfigError for a damaged file.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if not files:
        raise UsageError(f"there is no MMMU in {folder} (no *.jsonl); {_SOURCE}")
    if unknown := set(subjects) - files.keys():
        raise UsageError(
            f"there is no subject {min(unknown)!r} in {folder}; there are {', '.join(files)}"
        )
    questions: list[Question] = []
    num_open = 0
    for subject in subjects or files:
        every = list(_read(files[subject]))
        closed = [question for question in every if question is not None]
        questions += closed[: num_questions or None]
        num_open += len(every) - len(closed)
    return ChoiceTest(tuple(questions), num_open=num_open)


def _read(path: Path) -> Iterator[Question | None]:
    """The questions of a file; None for an open one."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        try:
            yield _question(msgspec.json.decode(line, type=_Line), path, number)
        except (ValueError, SyntaxError) as error:
            raise ConfigError(f"{path}: line {number} is damaged: {error}") from None


def _question(line: _Line, path: Path, number: int) -> Question | None:
    """Raises ValueError or SyntaxError."""
    options = _options(line.options)
    if line.question_type == _OPEN or not options:
        return None
    names = (getattr(line, f"image_{index}") for index in range(1, _MAX_IMAGES + 1))
    images = tuple(path.parent / name for name in names if name)
    name = line.id or str(number)
    question = Question(path.stem, name, line.question, options, line.answer, images)
    if len(options) > len(LETTERS):
        raise ValueError(f"it has {len(options)} options, and at most {len(LETTERS)} are possible")
    if len(line.answer) != 1 or line.answer not in question.letters:
        raise ValueError(f"its answer is {line.answer!r}, not one of {question.letters}")
    return question


def _options(given: list[str] | str) -> tuple[str, ...]:
    """MMMU's own files hold a list as Python writes it."""
    options = ast.literal_eval(given) if isinstance(given, str) else given
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise ValueError("its options are not a list of texts")
    return tuple(options)
