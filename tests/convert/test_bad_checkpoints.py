"""What is wrong with a checkpoint is said in one sentence, and nothing is written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import status_of
from hf_checkpoints import TinyCheckpoint, checkpoint_weights, write_checkpoint, write_weights
from hf_tokenizers import vocab_size
from privileges import permissions_apply
from safetensors_files import entry, write_raw

Change = Callable[[Path], object]
SHARDED = TinyCheckpoint(num_shards=2)
SHARD = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def config(**changes: Any) -> Change:
    return lambda folder: write_checkpoint(folder, replace(TinyCheckpoint(), changes=changes))


def tensors(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        weights: dict[str, Any] = dict(checkpoint_weights(TinyCheckpoint(), vocab_size(folder)))
        change(weights)
        write_weights(folder, weights)

    return apply


def set_tensor(name: str, values: Any) -> Change:
    return tensors(lambda weights: weights.update({name: values}))


def sharded(change: Change) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write_checkpoint(folder, SHARDED)
        change(folder)

    return apply


def write(name: str, content: str | bytes) -> Change:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def index(**places: str) -> Change:
    return write(INDEX, json.dumps({"weight_map": places}))


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"

BAD: dict[str, tuple[Change, str]] = {
    "no config": (remove("config.json"), "there is no file"),
    "config not JSON": (write("config.json", "{"), "is not valid JSON"),
    "config a list": (write("config.json", "[]"), "the file as a whole is wrong"),
    "no architecture": (config(architectures=None), "`architectures` does not name"),
    "unknown architecture": (
        config(architectures=["GemmaForCausalLM"]),
        "'GemmaForCausalLM' cannot be converted; known are InternLM2ForCausalLM, "
        "InternLM3ForCausalLM, LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, "
        "Qwen3ForCausalLM",
    ),
    "no layers": (config(num_hidden_layers=None), "num_hidden_layers is missing"),
    "no width": (config(hidden_size=None), "hidden_size is missing"),
    "no context": (config(max_position_embeddings=None), "max_position_embeddings is missing"),
    "text for a number": (config(intermediate_size="96"), "intermediate_size is '96'"),
    "too many layers": (config(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "uneven heads": (config(num_key_value_heads=3), "4 attention heads cannot share 3"),
    "odd head": (config(head_dim=15), "4 heads of 15 dimensions are not possible"),
    "giant heads": (config(head_dim=1 << 20), "4 heads of 1048576 dimensions"),
    "activation": (config(hidden_act="gelu"), "the activation 'gelu' is not supported"),
    "partial RoPE": (config(partial_rotary_factor=0.5), "RoPE on a part of each head"),
    "quantised": (config(quantization_config={"bits": 4}), "are quantised already"),
    "tied neither": (config(tie_word_embeddings="yes"), "neither true nor false"),
    "rope": (config(rope_scaling={"rope_type": "longrope"}), "RoPE scaling 'longrope'"),
    "rope not an object": (config(rope_scaling=[4]), "rope_scaling is not an object"),
    "rope without factor": (config(rope_scaling={"type": "linear"}), "factor is missing"),
    "llama3 bounds": (
        config(
            rope_scaling={
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 4,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 64,
            }
        ),
        "low_freq_factor is not below high_freq_factor",
    ),
    "other vocabulary": (config(vocab_size=4000), "embed_tokens.weight has shape [424, 64]"),
    "missing tensor": (
        tensors(lambda weights: weights.pop(Q_PROJ)),
        f"the checkpoint has no tensor {Q_PROJ}: it is incomplete",
    ),
    "missing output": (
        tensors(lambda weights: weights.pop("lm_head.weight")),
        "the checkpoint has no tensor lm_head.weight",
    ),
    "wrong shape": (
        set_tensor(Q_PROJ, np.zeros((64, 32), np.float32)),
        f"{Q_PROJ} has shape [64, 32], but [64, 64] follows from config.json",
    ),
    "vector for a matrix": (
        set_tensor(Q_PROJ, np.zeros(64, np.float32)),
        "has shape [64], but [64, 64]",
    ),
    "one bias only": (
        set_tensor("model.layers.0.self_attn.q_proj.bias", np.ones(64, np.float32)),
        "the checkpoint has no tensor model.layers.0.self_attn.k_proj.bias",
    ),
    "bias without place": (
        set_tensor("model.layers.1.mlp.up_proj.bias", np.ones(96, np.float32)),
        "mlp.up_proj.bias, for which the architecture llama has no place",
    ),
    "one layer too many": (
        set_tensor("model.layers.2.mlp.up_proj.weight", np.ones((96, 64), np.float32)),
        "model.layers.2.mlp.up_proj.weight, for which",
    ),
    "integers": (set_tensor(Q_PROJ, np.ones((64, 64), np.int64)), "has element type I64"),
    "not finite": (
        set_tensor(Q_PROJ, np.full((64, 64), np.nan, np.float32)),
        f"{Q_PROJ} holds numbers that are not finite",
    ),
    "too large for F16": (
        set_tensor(Q_PROJ, np.full((64, 64), 1e6, np.float32)),
        "too large for F16: choose bf16 or f32",
    ),
    "header of 2^60 bytes": (
        write("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        "the header claims 1152921504606846976 bytes",
    ),
    "corrupt header": (
        write("model.safetensors", struct.pack("<Q", 4) + b"{\0\0}"),
        "is not that of a safetensors file",
    ),
    "overlap": (
        lambda folder: write_raw(
            folder / "model.safetensors",
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)},
            bytes(6),
        ),
        "tensors a and b overlap",
    ),
    "cut off": (
        lambda folder: os.truncate(folder / "model.safetensors", 100_000),
        "ends after 100000 of",
    ),
    "no weights": (remove("model.safetensors"), "has no model.safetensors and no"),
    "PyTorch files": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "only as PyTorch files (.bin)",
    ),
    "missing shard": (sharded(remove(SHARD)), f"lacks 1 of 2 weight files ({SHARD})"),
    "no index": (sharded(remove(INDEX)), f"in several files, but no {INDEX}"),
    "empty index": (sharded(index()), "`weight_map` is missing or empty"),
    "index of numbers": (sharded(write(INDEX, '{"weight_map": {"a": 1}}')), "is wrong: expected"),
    "index leads out": (
        sharded(index(a="../model.safetensors")),
        "'../model.safetensors' is not the name of a file beside it",
    ),
    "index promises more": (sharded(index(x=SHARD)), f"{SHARD} lacks the tensor x"),
    "no tokenizer": (remove("tokenizer.json"), "neither tokenizer.json nor tokenizer.model"),
    "tokenizer nested deeply": (
        write("tokenizer.json", '{"pre_tokenizer": {"a":' + "[" * 100_000),
        "tokenizer.json is not valid JSON: maximum recursion depth",
    ),
    "tokenizer not JSON": (write("tokenizer.json", "{"), "tokenizer.json is not valid JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_checkpoints_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, complaint = BAD[name]
    folder = write_checkpoint(tmp_path / "hf")
    change(folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/m.gguf").write_bytes(b"GGUF old")
    assert status_of("convert", "hf-to-gguf", folder, tmp_path / "out/m.gguf", "-q") == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert (tmp_path / "out/m.gguf").read_bytes() == b"GGUF old"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.gguf"]


def test_a_checkpoint_that_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder, complaint in (("none", "does not exist"), ("file", "is a file")):
        assert status_of("convert", "hf-to-gguf", tmp_path / folder, tmp_path / "m.gguf") == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("place", ["hf/model.safetensors", "hf/config.json", "hf/tokenizer.json"])
def test_the_checkpoint_itself_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    before = (tmp_path / place).read_bytes()
    assert status_of("convert", "hf-to-gguf", folder, tmp_path / place, "-q") == 2
    assert "exists and is not a GGUF file" in capsys.readouterr().err
    assert (tmp_path / place).read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer.model", "."]
)
def test_files_that_may_not_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    (folder / "tokenizer.model").touch()
    (folder / name).chmod(0)
    with permissions_apply():
        assert status_of("convert", "hf-to-gguf", folder, tmp_path / "m.gguf", "-q") == 2
    (folder / name).chmod(0o755)
    assert "cannot be read: Permission denied" in capsys.readouterr().err
