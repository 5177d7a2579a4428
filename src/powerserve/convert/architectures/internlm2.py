"""InternLM 2 and 2.5: Llama's layers under other names, with Q, K and V in one matrix.

Source: modeling_internlm2.py of the checkpoints. They become files of the architecture llama, which
computes the same and which every reader of GGUF files knows.
"""

from __future__ import annotations

import numpy as np

from powerserve.convert.architectures.base import Architecture, RowOrder, interleaved_rows
from powerserve.convert.model_config import CheckpointConfig

_PACKED = "model.layers.{}.attention.wqkv"


def _q_rows(config: CheckpointConfig) -> RowOrder:
    return _unpacked(config, slice(0, config.num_heads // config.num_kv_heads), rotates=True)


def _k_rows(config: CheckpointConfig) -> RowOrder:
    return _unpacked(config, slice(-2, -1), rotates=True)


def _v_rows(config: CheckpointConfig) -> RowOrder:
    return _unpacked(config, slice(-1, None), rotates=False)


def _unpacked(config: CheckpointConfig, heads: slice, *, rotates: bool) -> RowOrder:
    """The rows of some heads of each group.

    A group is a KV head and the query heads that share it: [queries …, key, value].
    """
    group_size = config.num_heads // config.num_kv_heads + 2
    num_rows = config.num_kv_heads * group_size * config.head_dim
    groups = np.arange(num_rows).reshape(config.num_kv_heads, group_size, config.head_dim)
    rows = groups[:, heads].reshape(-1)
    if rotates:
        rows = rows[interleaved_rows(len(rows) // config.head_dim, config.head_dim)]
    return RowOrder(rows, num_rows)


INTERNLM2 = Architecture(
    checkpoint_names=("InternLM2ForCausalLM",),
    gguf_name="llama",
    names={
        "token_embd": "model.tok_embeddings",
        "output_norm": "model.norm",
        "output": "output",
        "blk.{}.attn_norm": "model.layers.{}.attention_norm",
        "blk.{}.attn_q": _PACKED,
        "blk.{}.attn_k": _PACKED,
        "blk.{}.attn_v": _PACKED,
        "blk.{}.attn_output": "model.layers.{}.attention.wo",
        "blk.{}.ffn_norm": "model.layers.{}.ffn_norm",
        "blk.{}.ffn_gate": "model.layers.{}.feed_forward.w1",
        "blk.{}.ffn_up": "model.layers.{}.feed_forward.w3",
        "blk.{}.ffn_down": "model.layers.{}.feed_forward.w2",
    },
    row_orders={
        "blk.{}.attn_q": _q_rows,
        "blk.{}.attn_k": _k_rows,
        "blk.{}.attn_v": _v_rows,
    },
)
