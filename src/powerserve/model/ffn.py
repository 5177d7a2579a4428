"""The feed-forward half of a decoder layer."""

from __future__ import annotations

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph, Value, Weight


def swiglu_ffn(graph: Graph, config: ModelConfig, layer: int, x: Value) -> Value:
    """x [T, D] -> down(silu(gate(x)) · up(x)): [T, D] (Shazeer 2020)."""
    widen = (config.ffn_dim, config.embed_dim)
    narrow = (config.embed_dim, config.ffn_dim)
    gate = graph.linear(x, Weight(f"blk.{layer}.ffn_gate.weight", widen))
    up = graph.linear(x, Weight(f"blk.{layer}.ffn_up.weight", widen))
    return graph.linear(graph.swiglu(gate, up), Weight(f"blk.{layer}.ffn_down.weight", narrow))
