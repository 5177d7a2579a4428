"""Qwen3: each head of Q and K is normalised; rows stay as they are."""

from __future__ import annotations

from powerserve.convert.architectures.base import QK_NORMS, USUAL_NAMES, Architecture

QWEN3 = Architecture(
    checkpoint_names=("Qwen3ForCausalLM",),
    gguf_name="qwen3",
    names=USUAL_NAMES,
    required=QK_NORMS,
)
