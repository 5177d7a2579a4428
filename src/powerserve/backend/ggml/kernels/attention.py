"""Attention: K and V into their cells, then one operation for all sequences of a step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32

from powerserve.backend.base import SliceShape
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.fusion import FusedAttention
from powerserve.backend.ggml.graph_inputs import GraphInputs
from powerserve.backend.ggml.kernels.custom import CustomNodes
from powerserve.backend.ggml.kernels.library import (
    AttentionSpec,
    KernelLibrary,
    SliceSpec,
    StoreSpec,
)
from powerserve.backend.ggml.library import Tensor
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig, RopeStyle


def can_attend(kernels: KernelLibrary, cache: GgmlCache, config: ModelConfig) -> bool:
    """Whether our kernels can do attention for such heads over such a cache."""
    heads_per_kv = config.num_heads // config.num_kv_heads
    return cache.dtype == dtypes.F16 and bool(kernels.can_attend(config.head_dim, heads_per_kv))


class AttentionNodes:
    """Attention over `cache` for the sequences of one step shape."""

    def __init__(
        self,
        nodes: CustomNodes,
        config: ModelConfig,
        cache: GgmlCache,
        slices: Sequence[SliceShape],
        inputs: GraphInputs,
    ) -> None:
        self._nodes = nodes
        self._config = config
        self._cache = cache
        self._slices = slices
        self._inputs = inputs

    def add(self, fused: FusedAttention, q: int, k: int, v: int, turns: int) -> int:
        """F32 [heads · head_dim, tokens], of q, k and v [head_dim, their heads, tokens].

        `turns`: F32 [rope dimensions, 1, tokens], cosines, then sines.
        """
        keys = self._cache.keys[fused.attention.layer]
        values = self._cache.values[fused.attention.layer]
        rotated = self._stored(fused, [q, k, v, turns, self._inputs.cells, keys, values])
        sources = [rotated, keys, values, self._inputs.masks]
        return self._attended(fused.attention.scale, sources)

    def _stored(self, fused: FusedAttention, sources: list[int]) -> int:
        """Q at its positions; K, too, and V are in the cache then."""
        rope = fused.rope.rope
        spec = StoreSpec(rope.dim, rope.style is RopeStyle.HALF_SPLIT)
        shape = Tensor.from_address(sources[0]).ne[:3]
        return self._nodes.add(
            dtypes.F32, shape, sources, self._nodes.kernels.op_store, spec, "STORE"
        )

    def _attended(self, scale: float, sources: list[int]) -> int:
        config, kernels = self._config, self._nodes.kernels
        num_tokens = sum(piece.num_tokens for piece in self._slices)
        spec = AttentionSpec(scale=scale, num_slices=len(self._slices))
        spec.slices = _slice_specs(self._slices)
        spec.num_finished = (c_int32 * (num_tokens * config.num_kv_heads))()
        spec.head_dim, spec.num_heads = config.head_dim, config.num_heads
        spec.num_kv_heads = config.num_kv_heads
        size = kernels.attention_floats(ctypes.byref(spec))
        everything = self._nodes.add(
            dtypes.F32, (size,), sources, kernels.op_attention, spec, "ATTENTION"
        )
        width = config.num_heads * config.head_dim
        result: int = self._nodes.library.view_2d(
            self._nodes.context, everything, width, num_tokens, dtypes.F32.size_bytes(width), 0
        )
        return result


def _slice_specs(slices: Sequence[SliceShape]) -> ctypes.Array[SliceSpec]:
    specs = (SliceSpec * len(slices))()
    first_token = mask_offset = 0
    for spec, piece in zip(specs, slices, strict=True):
        spec.first_token, spec.num_tokens = first_token, piece.num_tokens
        spec.first_cell, spec.num_cells = piece.first_cell, piece.num_cells
        spec.mask_offset = mask_offset
        first_token += piece.num_tokens
        mask_offset += piece.num_tokens * piece.num_cells
    return specs
