"""A converted checkpoint computes what the checkpoint's own formulas do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from batches import Tokens, batch_of
from hf_checkpoints import TinyCheckpoint, checkpoint_logits, checkpoint_weights, write_checkpoint
from hf_tokenizers import vocab_size, write_sentence_piece
from powerserve.convert.hf_to_gguf import ConversionOptions, convert
from tiny_reference import ReferenceRunner, load_reference

IDS = [5, 17, 200, 33, 8, 250, 71, 5, 0, 99, 300, 12, 5, 17, 200, 41]
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CHECKPOINTS = {
    "llama": TinyCheckpoint(num_shards=3),
    "llama3.2": TinyCheckpoint(rope_scaling=LLAMA3, rope_theta=500.0, tied=True),
    "llama-bias": TinyCheckpoint(qkv_bias=True),
    "multi-head": TinyCheckpoint(num_kv_heads=4),
    "linear": TinyCheckpoint(rope_scaling={"type": "linear", "factor": 4.0}),
    "yarn": TinyCheckpoint("Qwen2ForCausalLM", rope_scaling={**YARN, "attention_factor": None}),
    "yarn-factor": TinyCheckpoint(rope_scaling={**YARN, "attention_factor": 1.5}),
    "mistral-nemo": TinyCheckpoint("MistralForCausalLM", head_dim=24),
    "qwen2": TinyCheckpoint("Qwen2ForCausalLM", tied=True),
    "qwen3": TinyCheckpoint("Qwen3ForCausalLM", head_dim=32),
    "internlm2": TinyCheckpoint("InternLM2ForCausalLM", num_heads=6, embed_dim=96),
    "internlm3": TinyCheckpoint(
        "InternLM3ForCausalLM", rope_scaling={"rope_type": "dynamic", "factor": 6.0}
    ),
}


def logits_of(path: Path, ids: list[int]) -> np.ndarray:
    return ReferenceRunner(load_reference(path)).run(batch_of(Tokens(ids, range(len(ids)))))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_are_those_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    folder = write_checkpoint(tmp_path / "hf", checkpoint)
    weights = checkpoint_weights(checkpoint, vocab_size(folder))
    expected = checkpoint_logits(checkpoint, weights, IDS)
    convert(folder, tmp_path / "m.gguf", ConversionOptions("f32"))
    assert expected.std() > 0.5  # the model tells tokens apart
    np.testing.assert_allclose(logits_of(tmp_path / "m.gguf", IDS), expected, atol=1e-3)


def test_an_independent_reader_finds_the_same(tmp_path: Path) -> None:
    """Names, types and values by the `gguf` package, in the types that llama.cpp asks for."""
    folder = tmp_path / "hf"
    folder.mkdir()
    write_sentence_piece(folder)
    checkpoint = TinyCheckpoint()
    weights = checkpoint_weights(checkpoint, vocab_size(write_checkpoint(folder, checkpoint)))
    convert(folder, tmp_path / "m.gguf", ConversionOptions("f32"))
    reader = GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    for ours, theirs in (("ffn_down", "mlp.down_proj"), ("attn_v", "self_attn.v_proj")):
        expected = weights[f"model.layers.1.{theirs}.weight"]
        np.testing.assert_array_equal(tensors[f"blk.1.{ours}.weight"], expected)
    types = {key: [kind.name for kind in field.types] for key, field in reader.fields.items()}
    assert types["general.file_type"] == types["llama.block_count"] == ["UINT32"]
    assert types["llama.rope.freq_base"] == ["FLOAT32"]
    assert types["tokenizer.ggml.bos_token_id"] == ["UINT32"]
    assert types["tokenizer.ggml.add_bos_token"] == ["BOOL"]
    assert types["tokenizer.ggml.tokens"] == ["ARRAY", "STRING"]
    assert types["tokenizer.ggml.scores"] == ["ARRAY", "FLOAT32"]
    assert types["tokenizer.ggml.token_type"] == ["ARRAY", "INT32"]
