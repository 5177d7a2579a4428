"""Llama and what shares its layers: Llama 1 to 3, Mistral, SmolLM2, distillations of them.

Source: Touvron et al. 2023; in GGUF files the rows of Q and K are permuted for interleaved RoPE.
"""

from __future__ import annotations

from functools import partial

from powerserve.core.config import ModelConfig
from powerserve.graph import Graph
from powerserve.model.attention import self_attention
from powerserve.model.decoder import build_decoder


def build_llama(config: ModelConfig) -> Graph:
    """The graph of a llama model; some relatives of Llama carry biases on Q, K and V."""
    return build_decoder(config, partial(self_attention, qkv_bias=config.has_qkv_bias))
