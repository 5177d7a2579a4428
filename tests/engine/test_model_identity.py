"""KV cells may be shared where the identity is the same, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.engine.model_files import ModelFiles
from powerserve.engine.model_identity import cells_identity
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import resolve_model
from tiny_models import TinyModel, write_tiny_model

MODEL = TinyModel()


def identity(
    folder: Path, model: TinyModel = MODEL, backend: str = "ggml", kv: DType = dtypes.F16
) -> bytes:
    """Of a file written anew each time."""
    path = write_tiny_model(folder / "tiny.gguf", model)
    with GGUFFile.open(path) as weights:
        return cells_identity(ModelFiles.read(resolve_model(path), weights), backend, kv)


def test_a_copy_of_a_file_is_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    assert identity(tmp_path) == identity(tmp_path / "elsewhere")
    assert len(identity(tmp_path)) == 32


@pytest.mark.parametrize(
    "other",
    [
        TinyModel(seed=1),  # other weights
        TinyModel(dtype="F16"),  # the same ones, rounded
        TinyModel(rope_scaling="linear"),
        TinyModel(num_layers=3),
    ],
)
def test_another_model_has_another_identity(tmp_path: Path, other: TinyModel) -> None:
    assert identity(tmp_path) != identity(tmp_path, other)


def test_layout_and_type_of_the_cache_count(tmp_path: Path) -> None:
    assert identity(tmp_path) != identity(tmp_path, backend="reference")
    assert identity(tmp_path) != identity(tmp_path, kv=dtypes.Q8_0)
