"""The tensors of a compiled chunk: names, types and shapes are the original PowerServe's.

A chunk is a run of decoder layers. It takes the residual stream and the KV cache of its layers, and
returns the residual stream and the new tokens' K and V; writing them into the cache is the host's
work. The output layer (final norm included) is a graph of its own, the LM head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.core.config import ModelConfig

HIDDEN_IN = "x"
HIDDEN_OUT = "out"
LOGITS = "logits"
ATTENTION_BIAS = "attn_bias"
ROPE_COS = "rope_embed_cos"
ROPE_SIN = "rope_embed_sin"

F32 = np.dtype(np.float32)
F16 = np.dtype(np.float16)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a compiled graph; row-major shape."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def zeros(self) -> npt.NDArray[np.generic]:
        """A new array of this type and shape."""
        return np.zeros(self.shape, self.dtype)


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """What goes into a compiled graph and comes out of it, in the original's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ChunkShape:
    """The sizes one chunk is compiled for.

    Attributes:
        start_layer, end_layer: layers start … end - 1 of the model.
        batch_size: tokens of one run (B).
        cache_size: cells of the KV cache.
        context_size: columns of the attention bias; those from cache_size on are the batch's own
            tokens, those from cache_size + B on are padding.
    """

    start_layer: int
    end_layer: int
    batch_size: int
    cache_size: int
    context_size: int


def key_cache_name(layer: int, head: int) -> str:
    """Input: keys of every cell, after RoPE, times 1/sqrt(head_dim): float16 [head_dim, cache]."""
    return f"layer_{layer}_key_t_cache_{head}"


def value_cache_name(layer: int, head: int) -> str:
    """Input: values of every cell: float16 [cache, head_dim]."""
    return f"layer_{layer}_value_cache_{head}"


def key_name(layer: int, head: int) -> str:
    """Output: keys of the batch, as they go into the cache but not transposed: [B, head_dim]."""
    return f"layer_{layer}_key_{head}"


def value_name(layer: int, head: int) -> str:
    """Output: values of the batch: float16 [B, head_dim]."""
    return f"layer_{layer}_value_{head}"


def chunk_spec(config: ModelConfig, shape: ChunkShape) -> GraphSpec:
    """The inputs and outputs of a chunk.

    `attn_bias` [B, context] is added to the scores: 0 where a token may see a column, the folder's
    `attention_mask_value` elsewhere. RoPE is half-split: tables [B, head_dim / 2].
    """
    batch, head_dim = shape.batch_size, config.head_dim
    heads = [
        (layer, head)
        for layer in range(shape.start_layer, shape.end_layer)
        for head in range(config.num_kv_heads)
    ]
    return GraphSpec(
        inputs=(
            TensorSpec(HIDDEN_IN, F32, (batch, config.embed_dim)),
            TensorSpec(ATTENTION_BIAS, F16, (batch, shape.context_size)),
            TensorSpec(ROPE_COS, F32, (batch, head_dim // 2)),
            TensorSpec(ROPE_SIN, F32, (batch, head_dim // 2)),
            *_caches(heads, head_dim, shape.cache_size),
        ),
        outputs=(
            TensorSpec(HIDDEN_OUT, F32, (batch, config.embed_dim)),
            *_new_entries(heads, head_dim, batch),
        ),
    )


def lm_head_spec(config: ModelConfig, batch_size: int) -> GraphSpec:
    """The inputs and outputs of the LM head: final norm and output layer."""
    return GraphSpec(
        inputs=(TensorSpec(HIDDEN_IN, F32, (batch_size, config.embed_dim)),),
        outputs=(TensorSpec(LOGITS, F32, (batch_size, config.vocab_size)),),
    )


def _caches(heads: list[tuple[int, int]], head_dim: int, size: int) -> Iterator[TensorSpec]:
    for layer, head in heads:
        yield TensorSpec(key_cache_name(layer, head), F16, (head_dim, size))
        yield TensorSpec(value_cache_name(layer, head), F16, (size, head_dim))


def _new_entries(heads: list[tuple[int, int]], head_dim: int, batch: int) -> Iterator[TensorSpec]:
    for layer, head in heads:
        yield TensorSpec(key_name(layer, head), F16, (batch, head_dim))
        yield TensorSpec(value_name(layer, head), F16, (batch, head_dim))
