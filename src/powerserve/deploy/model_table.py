"""The models that can be deployed by a short name (models.toml)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

TABLE = Path(__file__).with_name("models.toml")


@dataclass(frozen=True, slots=True)
class TableModel:
    """A model's repositories, in which `{soc}` stands for a SoC; models.toml explains them."""

    repo: str
    template: str
    speculate: str | None = None
    draft: str | None = None


@dataclass(frozen=True, slots=True)
class ModelTable:
    """models.toml."""

    cpu: str
    socs: Mapping[str, str]
    models: Mapping[str, TableModel]


def load_model_table() -> ModelTable:
    """Read models.toml, which is part of the program."""
    return msgspec.convert(tomllib.loads(TABLE.read_text(encoding="utf-8")), ModelTable)
