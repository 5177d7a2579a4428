"""Llama 1 to 3 and what shares its checkpoints' layout: Mistral, SmolLM2, InternLM 3, Yi, …

In GGUF files of this architecture RoPE turns neighbouring rows of Q and K.
"""

from __future__ import annotations

from powerserve.convert.architectures.base import (
    QKV_BIASES,
    USUAL_NAMES,
    Architecture,
    RowOrder,
    interleaved_rows,
)
from powerserve.convert.model_config import CheckpointConfig


def _q_rows(config: CheckpointConfig) -> RowOrder:
    rows = interleaved_rows(config.num_heads, config.head_dim)
    return RowOrder(rows, len(rows))


def _k_rows(config: CheckpointConfig) -> RowOrder:
    rows = interleaved_rows(config.num_kv_heads, config.head_dim)
    return RowOrder(rows, len(rows))


LLAMA = Architecture(
    checkpoint_names=("LlamaForCausalLM", "MistralForCausalLM", "InternLM3ForCausalLM"),
    gguf_name="llama",
    names=USUAL_NAMES,
    optional=QKV_BIASES,
    row_orders={"blk.{}.attn_q": _q_rows, "blk.{}.attn_k": _k_rows},
)
