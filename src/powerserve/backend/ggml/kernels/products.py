"""Fused products: packed matrices with the norm before them and what follows."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.backend.ggml.fusion import FusedLinear
from powerserve.backend.ggml.kernels.custom import CustomNodes
from powerserve.backend.ggml.kernels.library import Flag, LinearSpec
from powerserve.backend.ggml.library import Tensor
from powerserve.backend.ggml.weights import WeightStore
from powerserve.core import dtypes


@dataclass(frozen=True, slots=True)
class _Sources:
    """What an operation reads (ggml tensors), as native/kernels wants it ordered."""

    x: int
    norm: list[int]
    weights: list[int]
    biases: list[int]
    residual: list[int]


class ProductNodes:
    """Products with the matrices of `weights`."""

    def __init__(self, nodes: CustomNodes, weights: WeightStore) -> None:
        self._nodes = nodes
        self._weights = weights

    def add(self, fused: FusedLinear, x: int, residual: int | None) -> list[int]:
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
        result = self._product(fused, sources, num_features)
        return [result] if len(fused.outputs) == 1 else self._parts(result, rows)

    def _product(self, fused: FusedLinear, sources: _Sources, num_features: int) -> int:
        kernels = self._nodes.kernels
        num_tokens = Tensor.from_address(sources.x).ne[1]
        inputs, flags = [sources.x, *sources.norm], Flag.NORM if sources.norm else Flag(0)
        if num_tokens > kernels.max_unprepared():
            inputs, flags = [self._prepared(fused, inputs, flags, num_tokens)], Flag.PREPARED
        flags |= Flag.SWIGLU if fused.is_swiglu else Flag(0)
        flags |= Flag.BIAS if sources.biases else Flag(0)
        flags |= Flag.RESIDUAL if sources.residual else Flag(0)
        inputs += [*sources.weights, *sources.biases, *sources.residual]
        shape = (num_features, num_tokens)
        spec = self._spec(fused, flags)
        return self._nodes.add(
            dtypes.F32, shape, inputs, kernels.op_linear, spec, f"PRODUCT {_weights(fused)}"
        )

    def _prepared(self, fused: FusedLinear, inputs: list[int], flags: Flag, num_tokens: int) -> int:
        """Normalised and quantised activations."""
        kernels = self._nodes.kernels
        size = kernels.prepared_bytes(fused.linears[0].weight.shape[1], num_tokens)
        spec = self._spec(fused, flags)
        name = f"PREPARE {_weights(fused)}"
        return self._nodes.add(dtypes.I8, (size,), inputs, kernels.op_prepare, spec, name)

    def _spec(self, fused: FusedLinear, flags: Flag) -> LinearSpec:
        spec = LinearSpec(flags=int(flags), num_weights=len(fused.linears))
        spec.in_features = fused.linears[0].weight.shape[1]
        spec.eps = 0.0 if fused.norm is None else fused.norm.eps
        for index, linear in enumerate(fused.linears):
            spec.types[index] = self._weights.packed_type(linear.weight).ggml_id
            spec.rows[index] = linear.weight.shape[0]
        return spec

    def _parts(self, result: int, rows: list[int]) -> list[int]:
        """Views of the features of each matrix."""
        num_tokens, row_bytes = Tensor.from_address(result).ne[1], Tensor.from_address(result).nb[1]
        views, start = [], 0
        for count in rows:
            offset = dtypes.F32.size_bytes(start)
            view = self._nodes.library.view_2d(
                self._nodes.context, result, count, num_tokens, row_bytes, offset
            )
            views.append(view)
            start += count
        return views


def _weights(fused: FusedLinear) -> str:
    """`blk.0.attn_q+attn_k+attn_v.weight`"""
    first, *others = (each.weight.name.removesuffix(".weight") for each in fused.linears)
    return "+".join([first, *(name.rpartition(".")[2] for name in others)]) + ".weight"
