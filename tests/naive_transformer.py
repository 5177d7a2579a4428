"""A whole llama-like model as one short function in float64: written apart from our graphs.

Reads a tiny model's weights by their GGUF names. No cache, no batch: one sequence, every token's
logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from tiny_models import TinyModel

Array = npt.NDArray[np.float64]


def naive_logits(
    model: TinyModel, weights: Mapping[str, npt.NDArray[np.float32]], ids: list[int]
) -> Array:
    """Logits [tokens, vocabulary] after each token of `ids`."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    x = w["token_embd.weight"][ids]
    for layer in range(model.num_layers):
        part = {
            name.removeprefix(f"blk.{layer}."): values
            for name, values in w.items()
            if name.startswith(f"blk.{layer}.")
        }
        x = x + attention(
            model, part, w.get("rope_freqs.weight"), norm(x, part["attn_norm.weight"])
        )
        normed = norm(x, part["ffn_norm.weight"])
        gate = normed @ part["ffn_gate.weight"].T
        up = normed @ part["ffn_up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ part["ffn_down.weight"].T
    output = w["token_embd.weight"] if model.tied else w["output.weight"]
    return norm(x, w["output_norm.weight"]) @ output.T


def norm(x: Array, weight: Array) -> Array:
    return x * weight / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def attention(
    model: TinyModel, part: Mapping[str, Array], factors: Array | None, x: Array
) -> Array:
    d = model.actual_head_dim
    group = model.num_heads // model.num_kv_heads
    causal = np.tri(len(x), dtype=bool)

    def head(letter: str, index: int) -> Array:
        rows = slice(index * d, (index + 1) * d)
        values = x @ part[f"attn_{letter}.weight"][rows].T
        if model.architecture == "qwen2":
            values = values + part[f"attn_{letter}.bias"][rows]
        if model.architecture == "qwen3" and letter != "v":
            values = norm(values, part[f"attn_{letter}_norm.weight"])
        return values if letter == "v" else rotate(model, values, factors)

    mixed = []
    for index in range(model.num_heads):
        scores = head("q", index) @ head("k", index // group).T / d**0.5
        shares = np.where(causal, np.exp(scores), 0)
        mixed.append(shares / shares.sum(-1, keepdims=True) @ head("v", index // group))
    return np.concatenate(mixed, -1) @ part["attn_output.weight"].T


def rotate(model: TinyModel, x: Array, factors: Array | None) -> Array:
    """x [tokens, d] as complex numbers, each turned by position · 10000^(-2i/d) / factor."""
    d = model.actual_head_dim
    angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, d, 2) / d)
    if factors is not None:
        angles = angles / factors
    is_interleaved = model.architecture == "llama"
    first, second = (x[:, 0::2], x[:, 1::2]) if is_interleaved else (x[:, : d // 2], x[:, d // 2 :])
    turned = (first + 1j * second) * np.exp(1j * angles)
    pairs = np.stack([turned.real, turned.imag], -1 if is_interleaved else 1)
    return pairs.reshape(len(x), d)
