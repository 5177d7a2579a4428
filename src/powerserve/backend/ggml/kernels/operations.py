"""Our operations as nodes of a ggml graph: fused products, and attention for all sequences."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import addressof, c_int32, c_void_p
from dataclasses import dataclass

from powerserve.backend.base import SliceShape
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.fusion import FusedLinear
from powerserve.backend.ggml.kernels.library import (
    AttentionSpec,
    Flag,
    KernelLibrary,
    LinearSpec,
    SliceSpec,
)
from powerserve.backend.ggml.library import ALL_THREADS, GgmlLibrary, Tensor
from powerserve.backend.ggml.weights import WeightStore
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig


@dataclass(frozen=True, slots=True)
class _Sources:
    """What an operation reads (ggml tensors), as native/kernels wants it ordered."""

    x: int
    norm: list[int]
    weights: list[int]
    biases: list[int]
    residual: list[int]


class KernelOperations:
    """Adds operations to one graph, which must not outlive this object."""

    def __init__(
        self, library: GgmlLibrary, kernels: KernelLibrary, context: int, weights: WeightStore
    ) -> None:
        self._library = library
        self._kernels = kernels
        self._context = context
        self._weights = weights
        self._memory: list[object] = []  # specifications, which are read when the graph is computed

    def products(self, fused: FusedLinear, x: int, residual: int | None) -> list[int]:
        """The tensors of `fused.outputs`: F32 [features, tokens], views of one if several."""
        weights = self._weights
        biases = [each.bias for each in fused.linears if each.bias is not None]
        sources = _Sources(
            x,
            [] if fused.norm is None else [weights.plain(fused.norm.weight)],
            [weights.packed(each.weight) for each in fused.linears],
            [weights.plain(each) for each in biases],
            [] if residual is None else [residual],
        )
        rows = [each.weight.shape[0] for each in fused.linears]
        num_features = rows[0] if fused.is_swiglu else sum(rows)
        result = self._add(fused, sources, num_features)
        self._library.set_name(result, _name(fused).encode()[:63])
        return [result] if len(fused.outputs) == 1 else self._parts(result, rows)

    def can_attend(self, cache: GgmlCache, config: ModelConfig) -> bool:
        """Whether there is attention for such heads over such a cache."""
        heads_per_kv = config.num_heads // config.num_kv_heads
        fits: int = self._kernels.can_attend(config.head_dim, heads_per_kv)
        return cache.dtype == dtypes.F16 and bool(fits)

    def attention(
        self,
        config: ModelConfig,
        slices: Sequence[SliceShape],
        scale: float,
        sources: tuple[int, int, int, int],
    ) -> int:
        """F32 [heads · head_dim, tokens].

        `sources`: q [head_dim, heads, tokens], a layer's keys and values [kv_dim, cells], and the
        masks of all slices, one after the other.
        """
        num_tokens = sum(piece.num_tokens for piece in slices)
        spec = AttentionSpec(scale=scale, num_slices=len(slices), slices=_slice_specs(slices))
        spec.num_finished = (c_int32 * (num_tokens * config.num_kv_heads))()
        spec.head_dim, spec.num_heads = config.head_dim, config.num_heads
        spec.num_kv_heads = config.num_kv_heads
        self._memory.append(spec)
        size = self._kernels.attention_floats(ctypes.byref(spec))
        operation = self._kernels.op_attention
        everything = self._custom(dtypes.F32, (size, 1), list(sources), operation, spec)
        width = config.num_heads * config.head_dim
        result: int = self._library.view_2d(
            self._context, everything, width, num_tokens, dtypes.F32.size_bytes(width), 0
        )
        return result

    def _add(self, fused: FusedLinear, sources: _Sources, num_features: int) -> int:
        kernels = self._kernels
        num_tokens = Tensor.from_address(sources.x).ne[1]
        flags = Flag.SWIGLU if fused.is_swiglu else Flag(0)
        flags |= Flag.BIAS if sources.biases else Flag(0)
        flags |= Flag.RESIDUAL if sources.residual else Flag(0)
        inputs = [sources.x, *sources.norm]
        with_norm = Flag.NORM if sources.norm else Flag(0)
        if num_tokens > kernels.max_unprepared():
            size = kernels.prepared_bytes(fused.linears[0].weight.shape[1], num_tokens)
            spec = self._spec(fused, with_norm)
            inputs = [self._custom(dtypes.I8, (size, 1), inputs, kernels.op_prepare, spec)]
            with_norm = Flag.PREPARED
        inputs += [*sources.weights, *sources.biases, *sources.residual]
        spec = self._spec(fused, flags | with_norm)
        return self._custom(dtypes.F32, (num_features, num_tokens), inputs, kernels.op_linear, spec)

    def _spec(self, fused: FusedLinear, flags: Flag) -> LinearSpec:
        spec = LinearSpec(flags=int(flags), num_weights=len(fused.linears))
        spec.in_features = fused.linears[0].weight.shape[1]
        spec.eps = 0.0 if fused.norm is None else fused.norm.eps
        for index, linear in enumerate(fused.linears):
            spec.types[index] = self._weights.packed_type(linear.weight).ggml_id
            spec.rows[index] = linear.weight.shape[0]
        self._memory.append(spec)
        return spec

    def _custom(
        self,
        dtype: dtypes.DType,
        shape: tuple[int, int],
        inputs: list[int],
        operation: object,
        spec: ctypes.Structure,
    ) -> int:
        tensor: int = self._library.custom_4d(
            self._context,
            dtype.ggml_id,
            *(*shape, 1, 1),
            (c_void_p * len(inputs))(*inputs),
            len(inputs),
            self._kernels.address(operation),
            ALL_THREADS,
            addressof(spec),
        )
        return tensor

    def _parts(self, result: int, rows: list[int]) -> list[int]:
        """Views of the features of each matrix."""
        tensor = Tensor.from_address(result)
        views, start = [], 0
        for count in rows:
            views.append(
                self._library.view_2d(
                    self._context,
                    result,
                    count,
                    tensor.ne[1],
                    tensor.nb[1],
                    dtypes.F32.size_bytes(start),
                )
            )
            start += count
        return views


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


def _name(fused: FusedLinear) -> str:
    """`blk.0.attn_q+attn_k+attn_v.weight`, for profiles."""
    first, *others = (each.weight.name.removesuffix(".weight") for each in fused.linears)
    return "+".join([first, *(name.rpartition(".")[2] for name in others)]) + ".weight"
