"""Qwen2, Qwen2.5 and SmallThinker-3B: biases on Q, K and V; rows stay as they are."""

from __future__ import annotations

from powerserve.convert.architectures.base import QKV_BIASES, USUAL_NAMES, Architecture

QWEN2 = Architecture(
    checkpoint_names=("Qwen2ForCausalLM",),
    gguf_name="qwen2",
    names=USUAL_NAMES,
    required=QKV_BIASES,
)
