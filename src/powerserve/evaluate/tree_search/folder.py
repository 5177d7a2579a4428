"""A search on disk: what is searched, what the target answers, what steps cost, and the points.

search.json      the models, the prompts, and the target's answers
times.json       milliseconds of steps on this machine; measured again if it is removed
database.jsonl   the points that are done
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.tree_search.answers import KnownAnswer
from powerserve.evaluate.tree_search.timing import StepTimes
from powerserve.storage.copying import file_errors
from powerserve.storage.json_file import read_json, write_json
from powerserve.storage.resolve import ModelSource

_SAMPLE_BYTES = 4 << 20  # of each end of a model file, which tell it from others


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model this is, wherever its file lies and whatever it is called."""

    name: str = field(compare=False)
    size_bytes: int
    sha256: str  # of both ends of the file

    @classmethod
    def of(cls, source: ModelSource) -> ModelIdentity:
        """That of a model's weights. Raises UsageError if they cannot be read."""
        digest = hashlib.sha256()
        with (
            file_errors(f"{source.weights} cannot be read"),
            source.weights.open("rb") as file,
        ):
            digest.update(file.read(_SAMPLE_BYTES))
            size_bytes = source.weights.stat().st_size
            file.seek(max(0, size_bytes - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
        return cls(source.name, size_bytes, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Subject:
    """What a search is about: points of different subjects cannot be compared."""

    target: ModelIdentity
    draft: ModelIdentity
    prompts: tuple[str, ...]
    chat: bool  # whether prompts are messages, not texts to be continued
    max_tokens: int  # of each answer
    backend: str
    kv_type: str


_PARTS = {
    "target": "another target model",
    "draft": "another draft model",
    "prompts": "other prompts",
    "chat": "prompts with or without the chat template",
    "max_tokens": "answers of another length (--num-tokens)",
    "backend": "another backend",
    "kv_type": "another type of KV cache",
}


@dataclass(frozen=True, slots=True)
class Record:
    """A subject, and what is known of the target."""

    subject: Subject
    answers: tuple[KnownAnswer, ...]
    stop_ids: tuple[int, ...]
    vocab_size: int


class SearchFolder:
    """The files of one search."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def database(self) -> Path:
        """The points."""
        return self.path / "database.jsonl"

    @property
    def _record(self) -> Path:
        return self.path / "search.json"

    @property
    def _times(self) -> Path:
        return self.path / "times.json"

    def record(self) -> Record:
        """What the search is about. Raises ConfigError if there is none."""
        if not self._record.exists():
            raise ConfigError(
                f"there is no search in {self.path}; `powerserve search-tree -m TARGET "
                f"--draft-model DRAFT -o {self.path}` begins one"
            )
        return read_json(self._record, Record)

    def record_of(self, subject: Subject) -> Record | None:
        """The record if the search has begun.

        Raises UsageError if it is about something else, or nobody knows what about; ConfigError
        for a damaged file.
        """
        if not self._record.exists():
            if self.database.exists() or self._times.exists():
                raise UsageError(
                    f"{self.path} holds results, but no {self._record.name} that says what they "
                    "are about; choose another folder with -o"
                )
            return None
        record = self.record()
        for part in fields(Subject):
            if getattr(record.subject, part.name) != getattr(subject, part.name):
                raise UsageError(
                    f"the search in {self.path} is about {_PARTS[part.name]}; "
                    "choose another folder with -o, or remove that one"
                )
        return record

    def times(self) -> StepTimes:
        """What has been measured. Raises ConfigError for a damaged file."""
        return read_json(self._times, StepTimes) if self._times.exists() else StepTimes()

    def create(self) -> None:
        """Make the folder if it is not there. Raises UsageError if that is not possible."""
        with file_errors(f"{self.path} cannot be made a folder"):
            self.path.mkdir(parents=True, exist_ok=True)

    def write_record(self, record: Record) -> None:
        """Begin a search. Raises UsageError if that cannot be written."""
        self._write(self._record, record)

    def write_times(self, times: StepTimes) -> None:
        """Keep measured times. Raises UsageError if they cannot be written."""
        self._write(self._times, times)

    def _write(self, path: Path, value: Record | StepTimes) -> None:
        with file_errors(f"{path} cannot be written"):
            write_json(path, asdict(value))
