"""Qwen2 and Qwen2.5: llama with biases on Q, K and V, and half-split RoPE (Yang et al. 2024)."""

from __future__ import annotations

from functools import partial

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph
from powerserve.model.attention import self_attention
from powerserve.model.decoder import build_decoder


def build_qwen2(config: ModelConfig) -> Graph:
    """The graph of a Qwen2 model."""
    return build_decoder(config, partial(self_attention, qkv_bias=True))
