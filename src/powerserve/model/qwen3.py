"""Qwen3: llama with each head of Q and K normalised, and half-split RoPE (Yang et al. 2025)."""

from __future__ import annotations

from functools import partial

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph
from powerserve.model.attention import self_attention
from powerserve.model.decoder import build_decoder


def build_qwen3(config: ModelConfig) -> Graph:
    """The graph of a Qwen3 model."""
    return build_decoder(config, partial(self_attention, qk_norm=True))
