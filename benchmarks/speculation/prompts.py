"""The prompts: one folder for each workload, one text file for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from powerserve.llm import LLM

FOLDER = Path(__file__).parent / "prompts"
RAW_WORKLOADS = ("completion",)  # continued as they are; the others are messages of a user


@dataclass(frozen=True, slots=True)
class Prompt:
    """What every contestant continues."""

    workload: str
    name: str
    token_ids: tuple[int, ...]


def workloads() -> list[str]:
    """The workloads there are."""
    return sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())


def load_prompts(llm: LLM, names: Sequence[str], limit: int | None) -> list[Prompt]:
    """The first `limit` prompts of these workloads, in the model's tokens."""
    return [prompt for name in names for prompt in _workload(llm, name, limit)]


def _workload(llm: LLM, workload: str, limit: int | None) -> Iterator[Prompt]:
    for file in sorted((FOLDER / workload).glob("*.txt"))[:limit]:
        yield Prompt(workload, file.stem, tuple(_encode(llm, workload, file.read_text("utf-8"))))


def _encode(llm: LLM, workload: str, text: str) -> list[int]:
    if workload in RAW_WORKLOADS or llm.loaded.template is None:
        return llm.loaded.tokenizer.encode(text)
    return llm.encode_chat([{"role": "user", "content": text.strip()}])
