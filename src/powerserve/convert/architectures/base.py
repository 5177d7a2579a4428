"""What conversion must know about an architecture: names, and rows that lie in another order.

GGUF and Hugging Face store the same matrices, [out_features, in_features]. What differs are their
names and, for some architectures, the order of the rows of Q and K.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from powerserve.convert.model_config import CheckpointConfig

RowIndices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Which rows of a source tensor make a tensor, in this order; the source has `num_rows`."""

    indices: RowIndices
    num_rows: int


MakeRowOrder = Callable[[CheckpointConfig], RowOrder]

# The names of most checkpoints by those of GGUF; `{}` is the layer's number.
USUAL_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
        "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
        "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
        "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
        "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    }
)
QKV_BIASES = ("blk.{}.attn_q.bias", "blk.{}.attn_k.bias", "blk.{}.attn_v.bias")
QK_NORMS = ("blk.{}.attn_q_norm.weight", "blk.{}.attn_k_norm.weight")


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one family of checkpoints becomes a GGUF file.

    Attributes:
        checkpoint_names: classes of transformers, as `architectures` in config.json has them.
        gguf_name: `general.architecture`.
        names: the checkpoint's names by GGUF's, both without `.weight` and `.bias`.
        required: tensors beyond those of every decoder (GGUF names).
        optional: tensors that some checkpoints have.
        row_orders: by GGUF name without `.weight` and `.bias`; rows of others stay as they are.
    """

    checkpoint_names: tuple[str, ...]
    gguf_name: str
    names: Mapping[str, str]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    row_orders: Mapping[str, MakeRowOrder] = field(default_factory=dict)


def interleaved_rows(num_heads: int, head_dim: int) -> RowIndices:
    """Rows of Q or K [heads · head_dim] for RoPE that turns neighbours (0, 1), (2, 3), …

    Checkpoints pair row i with row i + head_dim / 2 of the same head; GGUF's llama pairs
    neighbours. This brings partners together.
    """
    rows = np.arange(num_heads * head_dim, dtype=np.intp)
    return rows.reshape(num_heads, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)
