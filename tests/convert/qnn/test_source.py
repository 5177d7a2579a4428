"""Models of any kind, as the converter reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from hf_checkpoints import TinyCheckpoint, checkpoint_logits, checkpoint_weights, write_checkpoint
from hf_tokenizers import vocab_size
from npu_models import cpu_chunk, logits_of, open_tiny
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.config import RopeStyle
from powerserve.core.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, tiny_weights, write_tiny_model


@pytest.mark.parametrize(
    "checkpoint",
    [
        TinyCheckpoint(num_heads=8),
        TinyCheckpoint("Qwen2ForCausalLM", tied=True),
        TinyCheckpoint("Qwen3ForCausalLM", head_dim=32),
    ],
    ids=lambda checkpoint: checkpoint.architecture,
)
def test_a_checkpoint_computes_what_its_own_code_computes(
    tmp_path: Path, checkpoint: TinyCheckpoint
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", checkpoint)
    model = NpuModel.open(folder, tmp_path)
    ids = [5, 3, 200, 17, 42, 8, 1]
    weights = checkpoint_weights(checkpoint, vocab_size(folder))
    expected = checkpoint_logits(checkpoint, weights, ids)
    found = logits_of(model, [cpu_chunk(model)], ids)
    np.testing.assert_allclose(found, expected, atol=0.01)  # the file keeps float16


def test_rows_of_q_and_k_are_put_back_into_halves(tmp_path: Path) -> None:
    tiny = TinyModel("llama")
    model = open_tiny(tmp_path, tiny)
    stored = dict(tiny_weights(tiny))["blk.1.attn_k.weight"]
    heads = stored.reshape(tiny.num_kv_heads, -1, tiny.embed_dim)
    expected = np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(stored.shape)
    np.testing.assert_array_equal(model.weight("blk.1.attn_k.weight"), expected)
    assert model.config.rope.style is RopeStyle.HALF_SPLIT


def test_rows_of_the_embedding_table_come_one_by_one(tmp_path: Path) -> None:
    model = open_tiny(tmp_path, TinyModel(dtype="Q4_0"))
    tensor = next(each for each in GGUFReader(model.path).tensors if each.name.startswith("token"))
    from gguf.quants import dequantize

    table = dequantize(tensor.data, tensor.tensor_type)
    np.testing.assert_array_equal(model.embed([3, 250, 3]), table[[3, 250, 3]])


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        NpuModel.open(tmp_path / "nothing", tmp_path)
    (tmp_path / "noise.gguf").write_bytes(b"GGUF" + bytes(range(100)))
    with pytest.raises((ModelFileError, UnsupportedModelError)):
        NpuModel.open(tmp_path / "noise.gguf", tmp_path)


def test_a_model_that_rotates_parts_of_heads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gguf import GGUFWriter

    add = GGUFWriter.add_rope_dimension_count
    monkeypatch.setattr(GGUFWriter, "add_rope_dimension_count", lambda self, n: add(self, n // 2))
    path = write_tiny_model(tmp_path / "partial.gguf", TinyModel("qwen2"))
    with pytest.raises(UnsupportedModelError, match="rotates 8 of 16 dimensions"):
        NpuModel(GGUFFile.open(path))
