"""Tiny models of one vocabulary, a target and drafts that are more or less like it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tiny_models import TinyModel, write_tiny_model


@dataclass(frozen=True)
class ModelPair:
    """The GGUF files of a target and its draft."""

    target: Path
    draft: Path


def write_pair(folder: Path) -> ModelPair:
    """A target, and the same weights with 4 bits: it often says the same, but far from always."""
    return ModelPair(
        write_tiny_model(folder / "target.gguf", TinyModel()),
        write_tiny_model(folder / "draft.gguf", TinyModel(dtype="Q4_0")),
    )
