"""Self-attention with grouped-query heads, as llama and its relatives use it."""

from __future__ import annotations

from math import sqrt

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph, Value, Weight


def self_attention(
    graph: Graph,
    config: ModelConfig,
    layer: int,
    x: Value,
    *,
    qkv_bias: bool = False,
    qk_norm: bool = False,
) -> Value:
    """x [T, D] -> every head's mix of visible values, side by side: [T, heads · head_dim].

    `qkv_bias` adds a bias to Q, K and V (Qwen2); `qk_norm` normalises each head of Q and K before
    it is rotated (Qwen3). The output projection is left to the caller, who may need fewer rows.
    """

    def project(letter: str, num_heads: int) -> Value:
        name = f"blk.{layer}.attn_{letter}"
        width = num_heads * config.head_dim
        bias = Weight(f"{name}.bias", (width,)) if qkv_bias else None
        projected = graph.linear(x, Weight(f"{name}.weight", (width, config.embed_dim)), bias)
        return graph.split_heads(projected, num_heads)

    def locate(heads: Value, letter: str) -> Value:
        if qk_norm:
            weight = Weight(f"blk.{layer}.attn_{letter}_norm.weight", (config.head_dim,))
            heads = graph.rms_norm(heads, weight, config.norm_eps)
        return graph.rope(heads, config.rope, _rope_factors(config))

    q = locate(project("q", config.num_heads), "q")
    k = locate(project("k", config.num_kv_heads), "k")
    v = project("v", config.num_kv_heads)
    return graph.attention(q, k, v, layer, scale=1 / sqrt(config.head_dim))


def output_projection(graph: Graph, config: ModelConfig, layer: int, attended: Value) -> Value:
    """attended [T, heads · head_dim] -> [T, D]."""
    shape = (config.embed_dim, config.num_heads * config.head_dim)
    return graph.linear(attended, Weight(f"blk.{layer}.attn_output.weight", shape))


def _rope_factors(config: ModelConfig) -> Weight | None:
    if not config.has_rope_factors:
        return None
    return Weight("rope_freqs.weight", (config.rope.dim // 2,))
