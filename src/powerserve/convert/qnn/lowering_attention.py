"""Lowering of heads, RoPE and attention over the KV cache, as the original's graphs have them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.convert.qnn.onnx_graph import ELEMENT_TYPES, OnnxGraph
from powerserve.convert.qnn.pieces import Piece, numbered, suffix
from powerserve.core.config import ModelConfig
from powerserve.graph.ops import Attention


@dataclass(frozen=True, slots=True)
class AttentionLowering:
    """Writes the operations on heads into `graph`.

    Attributes:
        element_type: in which attention is computed and the cache is kept.
        gain: what every head's result is multiplied with.
    """

    graph: OnnxGraph
    config: ModelConfig
    shape: ChunkShape
    element_type: np.dtype[np.generic]
    gain: float

    def split_heads(self, x: list[Piece], output: str) -> list[Piece]:
        """One piece for each head, in order."""
        head_dim, heads = self.config.head_dim, []
        for piece in x:
            columns = piece.columns.reshape(-1, head_dim)
            names = [f"{output}_{each[0] // head_dim}" for each in columns]
            heads += [
                replace(piece, name=name, columns=each)
                for name, each in zip(self._split(piece.name, names), columns, strict=True)
            ]
        return sorted(heads, key=lambda head: int(head.columns[0]))

    def rope(self, heads: list[Piece], output: str) -> list[Piece]:
        """Every head rotated by its token's position."""
        return [
            replace(head, name=self._rotate(head.name, numbered(output, index, len(heads))))
            for index, head in enumerate(heads)
        ]

    def attention(
        self, operation: Attention, q: list[Piece], k: list[Piece], v: list[Piece], output: str
    ) -> list[Piece]:
        """The heads' results side by side, in float32; K and V of the batch become outputs."""
        mixed: list[Piece] = []
        heads_per_key_head = len(q) // len(k)
        for index, (key, value) in enumerate(zip(k, v, strict=True)):
            keys = self._keys(operation, key.name, index)
            values = self._values(operation.layer, value.name, index)
            for head in q[index * heads_per_key_head : (index + 1) * heads_per_key_head]:
                name = f"{output}_{len(mixed)}"
                mixed.append(replace(head, name=self._attend(head.name, keys, values, name)))
        return self._join(mixed, output)

    def _split(self, x: str, outputs: list[str]) -> list[str]:
        if len(outputs) == 1:
            return [x]
        return self.graph.nodes("Split", [x], outputs, axis=-1, num_outputs=len(outputs))

    def _rotate(self, x: str, output: str) -> str:
        """x [B, head_dim] with dimensions i and i + head_dim / 2 rotated as a pair."""
        graph, cos, sin = self.graph, tensors.ROPE_COS, tensors.ROPE_SIN
        first, second = self._split(x, [f"{output}_first", f"{output}_second"])

        def product(half: str, table: str) -> str:
            return graph.node("Mul", [half, table], f"{half}_{table}")

        left = graph.node("Sub", [product(first, cos), product(second, sin)], f"{output}_left")
        right = graph.node("Add", [product(first, sin), product(second, cos)], f"{output}_right")
        return graph.node("Concat", [left, right], output, axis=-1)

    def _keys(self, operation: Attention, key: str, head: int) -> str:
        """The batch's keys, scaled, as an output; with those of the cache [head_dim, context]."""
        name = tensors.key_name(operation.layer, head)
        scale = self.graph.constant(
            f"scale_{operation.scale:.9g}", np.array(operation.scale, np.float32)
        )
        scaled = self.graph.node("Mul", [key, scale], f"{name}_scaled")
        new = self.graph.node("Transpose", [self._cast(scaled, name)], f"{name}_t", perm=[1, 0])
        return self._with_cache(tensors.key_cache_name(operation.layer, head), new, axis=1)

    def _values(self, layer: int, value: str, head: int) -> str:
        """The batch's values as an output; with those of the cache [context, head_dim]."""
        new = self._cast(value, tensors.value_name(layer, head))
        return self._with_cache(tensors.value_cache_name(layer, head), new, axis=0)

    def _with_cache(self, cache: str, new: str, axis: int) -> str:
        """Cached and new entries along `axis`, then zeros for the columns that pad the mask."""
        shape, parts = self.shape, [cache, new]
        num_padding = shape.context_size - shape.cache_size - shape.batch_size
        if num_padding:
            size = [self.config.head_dim] * 2
            size[axis] = num_padding
            zeros = np.zeros(size, self.element_type)
            parts.append(self.graph.constant(f"padding_{axis}", zeros))
        return self.graph.node("Concat", parts, f"{new}_all", axis=axis)

    def _attend(self, q: str, keys: str, values: str, output: str) -> str:
        """softmax(q · keys + mask) · values: [B, head_dim]."""
        graph = self.graph
        scores = graph.node("MatMul", [self._cast(q, f"{output}_q"), keys], f"{output}_scores")
        masked = graph.node("Add", [scores, tensors.ATTENTION_BIAS], f"{output}_masked")
        weights = graph.node("Softmax", [masked], f"{output}_weights", axis=-1)
        if self.gain == 1:
            return graph.node("MatMul", [weights, values], output)
        factor = graph.constant("attention_gain", np.array(self.gain, self.element_type))
        mixed = graph.node("MatMul", [weights, values], f"{output}_mixed")
        return graph.node("Mul", [mixed, factor], output)

    def _join(self, heads: list[Piece], output: str) -> list[Piece]:
        """Heads side by side: those that are quantised, and those that stay in floating point."""
        joined = []
        for is_float in (False, True):
            group = [head for head in heads if head.is_float == is_float]
            if group:
                name = output + suffix(is_float)
                columns = np.concatenate([head.columns for head in group])
                joined.append(Piece(self._side_by_side(group, name), columns, is_float, self.gain))
        return joined

    def _side_by_side(self, heads: list[Piece], output: str) -> str:
        names = [head.name for head in heads]
        joined = self.graph.node("Concat", names, f"{output}_narrow", axis=-1)
        return self.graph.node("Cast", [joined], output, to=ELEMENT_TYPES[tensors.F32])

    def _cast(self, x: str, output: str) -> str:
        return self.graph.node("Cast", [x], output, to=ELEMENT_TYPES[self.element_type])
