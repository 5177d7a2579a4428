"""Tiny random checkpoints in Hugging Face's layout, and what their models compute.

The computation is written from transformers' modelling code (rotate-half RoPE and all), in float64
and without cache: it shares nothing with our graphs, nor with GGUF's order of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hf_tokenizers import vocab_size, write_byte_level
from safetensors_files import bfloat16, write_safetensors

FloatArray = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TinyCheckpoint:
    """What to write; the vocabulary is that of the tokenizer in the folder."""

    architecture: str = "LlamaForCausalLM"
    dtype: str = "F32"  # or F16 or BF16
    seed: int = 0
    num_layers: int = 2
    embed_dim: int = 64
    ffn_dim: int = 96
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None
    context_length: int = 512
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tied: bool = False
    qkv_bias: bool = False
    num_shards: int = 1
    changes: Mapping[str, Any] = field(default_factory=dict)  # to config.json; None removes a key

    @property
    def width(self) -> int:
        """Of one head."""
        return self.head_dim or self.embed_dim // self.num_heads

    @property
    def has_qkv_bias(self) -> bool:
        return self.qkv_bias or self.architecture.startswith("Qwen2")

    @property
    def is_packed(self) -> bool:
        """Whether Q, K and V share a matrix."""
        return self.architecture.startswith("InternLM2")


def write_checkpoint(folder: Path, checkpoint: TinyCheckpoint = TinyCheckpoint()) -> Path:
    """Write config.json and the weights, and a tokenizer unless the folder has one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("tokenizer.*")):
        write_byte_level(folder)
    config = {**_config(checkpoint, vocab_size(folder)), **checkpoint.changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    tensors = {
        name: _stored(values, checkpoint.dtype)
        for name, values in checkpoint_weights(checkpoint, vocab_size(folder)).items()
    }
    write_weights(folder, tensors, checkpoint.num_shards)
    return folder


def write_weights(
    folder: Path, tensors: Mapping[str, npt.NDArray[Any]], num_shards: int = 1
) -> None:
    """model.safetensors, or shards with an index."""
    if num_shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return
    files = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    places = {name: files[index % num_shards] for index, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name in tensors if places[name] == file}
        write_safetensors(folder / file, part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def checkpoint_weights(checkpoint: TinyCheckpoint, num_tokens: int) -> dict[str, FloatArray]:
    """Every tensor by its name in the checkpoint; matrices are [out, in]."""
    rng = np.random.default_rng(checkpoint.seed)
    embed, ffn, d = checkpoint.embed_dim, checkpoint.ffn_dim, checkpoint.width

    def matrix(num_out: int, num_in: int) -> FloatArray:
        return rng.normal(0, num_in**-0.5, (num_out, num_in)).astype(np.float32)

    def vector(size: int, mean: float = 1, deviation: float = 0.1) -> FloatArray:
        return rng.normal(mean, deviation, size).astype(np.float32)

    names = _INTERNLM2_NAMES if checkpoint.is_packed else _NAMES
    weights = {names["table"]: 2 * matrix(num_tokens, embed), names["norm"]: vector(embed)}
    if not checkpoint.tied:
        weights[names["output"]] = 2 * matrix(num_tokens, embed)
    q_dim, kv_dim = checkpoint.num_heads * d, checkpoint.num_kv_heads * d
    for layer in range(checkpoint.num_layers):
        parts = {
            "norm1": vector(embed),
            "o": matrix(embed, q_dim),
            "norm2": vector(embed),
            "gate": matrix(ffn, embed),
            "up": matrix(ffn, embed),
            "down": matrix(embed, ffn),
        }
        if checkpoint.is_packed:
            parts["qkv"] = matrix(q_dim + 2 * kv_dim, embed)
        else:
            parts |= {"q": matrix(q_dim, embed), "k": matrix(kv_dim, embed)}
            parts["v"] = matrix(kv_dim, embed)
        if checkpoint.has_qkv_bias:
            parts |= {"bq": vector(q_dim, 0), "bk": vector(kv_dim, 0), "bv": vector(kv_dim, 0)}
        if checkpoint.architecture.startswith("Qwen3"):
            parts |= {"nq": vector(d), "nk": vector(d)}
        weights |= {f"model.layers.{layer}.{names[key]}": each for key, each in parts.items()}
    return {name: _rounded(values, checkpoint.dtype) for name, values in weights.items()}


def checkpoint_logits(
    checkpoint: TinyCheckpoint, weights: Mapping[str, npt.NDArray[Any]], ids: list[int]
) -> Array:
    """Logits [tokens, vocabulary] after each token of `ids`."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    names = _INTERNLM2_NAMES if checkpoint.is_packed else _NAMES
    x = w[names["table"]][ids]
    for layer in range(checkpoint.num_layers):
        part = {
            key: w[f"model.layers.{layer}.{name}"]
            for key, name in names.items()
            if f"model.layers.{layer}.{name}" in w
        }
        x = x + _attention(checkpoint, part, _norm(x, part["norm1"]))
        normed = _norm(x, part["norm2"])
        gate = normed @ part["gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ part["up"].T)) @ part["down"].T
    output = w[names["table"] if checkpoint.tied else names["output"]]
    return _norm(x, w[names["norm"]]) @ output.T


_NAMES = {
    "table": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "output": "lm_head.weight",
    "norm1": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "bq": "self_attn.q_proj.bias",
    "bk": "self_attn.k_proj.bias",
    "bv": "self_attn.v_proj.bias",
    "nq": "self_attn.q_norm.weight",
    "nk": "self_attn.k_norm.weight",
    "o": "self_attn.o_proj.weight",
    "norm2": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
_INTERNLM2_NAMES = {
    "table": "model.tok_embeddings.weight",
    "norm": "model.norm.weight",
    "output": "output.weight",
    "norm1": "attention_norm.weight",
    "qkv": "attention.wqkv.weight",
    "o": "attention.wo.weight",
    "norm2": "ffn_norm.weight",
    "gate": "feed_forward.w1.weight",
    "up": "feed_forward.w3.weight",
    "down": "feed_forward.w2.weight",
}


def _config(checkpoint: TinyCheckpoint, num_tokens: int) -> dict[str, Any]:
    return {
        "architectures": [checkpoint.architecture],
        "hidden_act": "silu",
        "hidden_size": checkpoint.embed_dim,
        "intermediate_size": checkpoint.ffn_dim,
        "num_hidden_layers": checkpoint.num_layers,
        "num_attention_heads": checkpoint.num_heads,
        "num_key_value_heads": checkpoint.num_kv_heads,
        "head_dim": checkpoint.head_dim,
        "max_position_embeddings": checkpoint.context_length,
        "rms_norm_eps": 1e-5,
        "rope_theta": checkpoint.rope_theta,
        "rope_scaling": checkpoint.rope_scaling,
        "tie_word_embeddings": checkpoint.tied,
        "vocab_size": num_tokens,
    }


def _stored(values: FloatArray, dtype: str) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return bfloat16(values)
    return values.astype(np.float16) if dtype == "F16" else values


def _rounded(values: FloatArray, dtype: str) -> FloatArray:
    """The numbers that remain after storing them."""
    if dtype == "BF16":
        return (bfloat16(values).astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float16).astype(np.float32) if dtype == "F16" else values


def _norm(x: Array, weight: Array) -> Array:
    return x * weight / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def _attention(checkpoint: TinyCheckpoint, part: Mapping[str, Array], x: Array) -> Array:
    d, group = checkpoint.width, checkpoint.num_heads // checkpoint.num_kv_heads
    if checkpoint.is_packed:  # "b q (h gs d) -> b q h gs d", the last two of gs are K and V
        mixed = (x @ part["qkv"].T).reshape(len(x), checkpoint.num_kv_heads, group + 2, d)
        q = mixed[:, :, :group].reshape(len(x), -1, d)
        k, v = mixed[:, :, -2], mixed[:, :, -1]
    else:
        q, k, v = (
            (x @ part[name].T + part.get(f"b{name}", 0)).reshape(len(x), -1, d) for name in "qkv"
        )
    if "nq" in part:
        q, k = _norm(q, part["nq"]), _norm(k, part["nk"])
    q, k = _rotate(checkpoint, q), _rotate(checkpoint, k)
    k, v = (np.repeat(each, group, axis=1) for each in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / d**0.5
    shares = np.where(np.tri(len(x), dtype=bool), np.exp(scores), 0)
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", shares, v).reshape(len(x), -1) @ part["o"].T


def _rotate(checkpoint: TinyCheckpoint, x: Array) -> Array:
    """x [tokens, heads, d]: `x * cos + rotate_half(x) * sin` of transformers."""
    frequencies, temperature = _frequencies(checkpoint)
    angles = np.arange(len(x))[:, None] * np.concatenate([frequencies, frequencies])
    half = checkpoint.width // 2
    rotated = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
    turned = x * np.cos(angles)[:, None] + rotated * np.sin(angles)[:, None]
    return turned * temperature


def _frequencies(checkpoint: TinyCheckpoint) -> tuple[Array, float]:
    d, base = checkpoint.width, checkpoint.rope_theta
    frequencies = 1.0 / base ** (np.arange(0, d, 2) / d)
    given = checkpoint.rope_scaling or {}
    scaling = {key: value for key, value in given.items() if value is not None}
    match scaling.get("rope_type", scaling.get("type")):
        case "linear":
            return frequencies / scaling["factor"], 1.0
        case "llama3":
            return np.array([_llama3(f, scaling) for f in frequencies]), 1.0
        case "yarn":
            return _yarn(checkpoint, frequencies, scaling)
    return frequencies, 1.0


def _llama3(frequency: float, scaling: Mapping[str, Any]) -> float:
    original, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * np.pi / frequency
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / factor
    smooth = (original / wavelength - low) / (high - low)
    return float((1 - smooth) * frequency / factor + smooth * frequency)


def _yarn(
    checkpoint: TinyCheckpoint, frequencies: Array, scaling: Mapping[str, Any]
) -> tuple[Array, float]:
    d, base, factor = checkpoint.width, checkpoint.rope_theta, scaling["factor"]
    original = scaling["original_max_position_embeddings"]

    def correction(rotations: float) -> float:
        return float(d * np.log(original / (rotations * 2 * np.pi)) / (2 * np.log(base)))

    low = max(np.floor(correction(scaling.get("beta_fast", 32))), 0)
    high = min(np.ceil(correction(scaling.get("beta_slow", 1))), d - 1)
    ramp = np.clip((np.arange(d // 2) - low) / max(high - low, 0.001), 0, 1)
    mixed = frequencies / factor * ramp + frequencies * (1 - ramp)
    return mixed, scaling.get("attention_factor", 0.1 * np.log(factor) + 1)
