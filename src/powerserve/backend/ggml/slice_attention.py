"""Attention by ggml's kernels: an operation for each sequence of a step."""

from __future__ import annotations

from powerserve.backend.base import SliceShape, StepShape
from powerserve.backend.ggml.cache import GgmlCache
from powerserve.backend.ggml.graph_inputs import GraphInputs
from powerserve.backend.ggml.library import GgmlLibrary, Tensor
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.graph.ops import Attention


class SliceAttention:
    """Stores K and V, then lets each slice attend to the cells of its own range."""

    def __init__(
        self,
        library: GgmlLibrary,
        context: int,
        graph: int,
        config: ModelConfig,
        cache: GgmlCache,
        shape: StepShape,
        inputs: GraphInputs,
    ) -> None:
        self._library = library
        self._context = context
        self._graph = graph
        self._config = config
        self._cache = cache
        self._shape = shape
        self._inputs = inputs
        self._join: int | None = None

    def add(self, operation: Attention, q: int, k: int, v: int) -> int:
        """F32 [heads · head_dim, tokens], of q, k and v [head_dim, their heads, tokens]."""
        library, context = self._library, self._context
        config, num_tokens = self._config, self._shape.num_tokens
        keys, values = self._cache.keys[operation.layer], self._cache.values[operation.layer]
        for target, rows in ((keys, k), (values, v)):
            token_bytes = Tensor.from_address(rows).nb[2]
            flat = library.view_2d(context, rows, config.kv_dim, num_tokens, token_bytes, 0)
            stored = library.set_rows(context, target, flat, self._inputs.cells)
            library.build_forward_expand(self._graph, stored)
        return self._attended(operation.scale, q, keys, values)

    def _attended(self, scale: float, q: int, keys: int, values: int) -> int:
        """An operation for each slice."""
        library, context = self._library, self._context
        width = self._config.num_heads * self._config.head_dim
        attended = []
        start = mask_start = 0
        for piece in self._shape.slices:
            mixed = library.flash_attn_ext(
                context,
                self._queries(q, start, piece.num_tokens),
                self._visible(keys, piece),
                self._visible(values, piece),
                self._mask(piece, mask_start),
                scale,
                0.0,  # ALiBi slope: unused
                0.0,  # logit soft cap: unused
            )
            attended.append(library.reshape_2d(context, mixed, width, piece.num_tokens))
            start += piece.num_tokens
            mask_start += piece.num_cells * piece.num_tokens
        return attended[0] if len(attended) == 1 else self._joined(attended, width)

    def _mask(self, piece: SliceShape, start: int) -> int:
        row_bytes = dtypes.F16.size_bytes(piece.num_cells)
        offset = dtypes.F16.size_bytes(start)
        tensor: int = self._library.view_2d(
            self._context, self._inputs.masks, piece.num_cells, piece.num_tokens, row_bytes, offset
        )
        return tensor

    def _queries(self, q: int, start: int, num_tokens: int) -> int:
        """Tokens start … start + num_tokens of q [head_dim, heads, tokens], heads last."""
        head_bytes, token_bytes = Tensor.from_address(q).nb[1:3]
        rows = self._library.view_3d(
            self._context,
            q,
            self._config.head_dim,
            self._config.num_heads,
            num_tokens,
            head_bytes,
            token_bytes,
            start * token_bytes,
        )
        tensor: int = self._library.permute(self._context, rows, 0, 2, 1, 3)
        return tensor

    def _visible(self, stored: int, piece: SliceShape) -> int:
        """A range of cells of a layer's keys or values, as [head_dim, cells, kv_heads]."""
        config, cache = self._config, self._cache
        tensor: int = self._library.view_3d(
            self._context,
            stored,
            config.head_dim,
            piece.num_cells,
            config.num_kv_heads,
            cache.row_bytes,
            cache.dtype.size_bytes(config.head_dim),
            piece.first_cell * cache.row_bytes,
        )
        return tensor

    def _joined(self, parts: list[int], width: int) -> int:
        """The slices' results one after another, copied into the tensor all layers share."""
        library, context = self._library, self._context
        row_bytes = dtypes.F32.size_bytes(width)
        if self._join is None:
            self._join = library.new_tensor_2d(
                context, dtypes.F32.ggml_id, width, self._shape.num_tokens
            )
            library.set_input(self._join)
        start = 0
        for part, piece in zip(parts, self._shape.slices, strict=True):
            place = library.view_2d(
                context, self._join, width, piece.num_tokens, row_bytes, start * row_bytes
            )
            library.build_forward_expand(self._graph, library.cpy(context, part, place))
            start += piece.num_tokens
        return self._join
