"""Steps over a KV cache, built with ggml in each of the layouts that are compared.

`pool`     one flash_attn_ext over cells 0 … highest in use, one mask [cells, tokens].
`streams`  one flash_attn_ext over K and V as [head_dim, cells, kv_heads, sequences].
`slices`   one flash_attn_ext for each sequence over a view of its own range of cells; its output is
           placed by address in a tensor shared by all, so nothing is copied.
`slices+cpy`      the same, each output copied to its place by a node of its own.
`folded`          as `slices`, the query heads that share a KV head laid out as further rows of it
                  (at least 64 rows, where ggml's tiled path begins).
`slices, no mask` the same as `slices` without masks: what a sequence whose cells are all visible
                  could do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import binding
import numpy as np
from binding import F16, F32, I32, I64, Q4_0, Ggml

PAD = 256


@dataclass(frozen=True)
class Shape:
    """The sizes of a model."""

    name: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    vocab: int

    @property
    def kv_dim(self) -> int:
        return self.kv_heads * self.head_dim


SMOLLM2 = Shape("SmolLM2-135M", 30, 9, 3, 64, 576, 1536, 49152)
QWEN = Shape("Qwen2.5-0.5B", 24, 14, 2, 64, 896, 4864, 151936)


@dataclass(frozen=True)
class Slice:
    """A chain of tokens of one sequence, which sees cells range(first, stop, stride).

    The tokens themselves occupy the last `num_tokens` of those cells.
    """

    num_tokens: int
    first: int
    stop: int
    stride: int = 1

    @property
    def cells(self) -> range:
        return range(self.first, self.stop, self.stride)


def padded(num_cells: int) -> int:
    return -(-num_cells // PAD) * PAD


def contiguous(num_sequences: int, num_cells: int, num_tokens: int = 1) -> list[Slice]:
    """Sequences one after the other in the pool."""
    return [Slice(num_tokens, i * num_cells, (i + 1) * num_cells) for i in range(num_sequences)]


def interleaved(num_sequences: int, num_cells: int, num_tokens: int = 1) -> list[Slice]:
    """Sequences that grew in turns, each taking the lowest free cell."""
    end = num_sequences * num_cells
    return [Slice(num_tokens, i, end, num_sequences) for i in range(num_sequences)]


def fill_mask(mask: np.ndarray, piece: Slice, origin: int = 0) -> None:
    """Fill a slice's rows: mask [num_tokens, num_cells] whose column 0 is the cell `origin`."""
    mask[:] = -np.inf
    cells = piece.cells
    context = len(cells) - piece.num_tokens
    for i in range(piece.num_tokens):
        seen = cells[: context + i + 1]
        mask[i, seen.start - origin : seen.stop - origin : seen.step] = 0


class Cache:
    """K and V [kv_dim, num_cells] of every layer, filled with random values."""

    def __init__(self, g: Ggml, shape: Shape, num_cells: int, kv_type: int = F16) -> None:
        self.g, self.shape, self.num_cells, self.kv_type = g, shape, num_cells, kv_type
        context = g.context(2 * shape.layers)
        tensors = [
            g.new_tensor_2d(context, kv_type, shape.kv_dim, num_cells)
            for _ in range(2 * shape.layers)
        ]
        self._buffer = g.backend_alloc_ctx_tensors_from_buft(context, g.host)
        self.k, self.v = tensors[::2], tensors[1::2]
        content = quantized(g, kv_type, g.nbytes(tensors[0]), shape.kv_dim)
        for tensor in tensors:
            g.array(tensor, np.uint8)[:] = content

    @property
    def cell_bytes(self) -> int:
        """Bytes of one token's K (or V) in one layer."""
        return self.g.row_size(self.kv_type, self.shape.kv_dim)

    def close(self) -> None:
        self.g.backend_buffer_free(self._buffer)


def quantized(g: Ggml, dtype: int, size_bytes: int, row: int, scale: float = 1) -> np.ndarray:
    """`size_bytes` bytes of normally distributed values of a ggml type (a 1,024-row pattern)."""
    rows = 1024
    values = np.random.default_rng(0).standard_normal((rows, row)).astype(np.float32) * scale
    if dtype == F16:
        pattern = values.astype(np.float16).view(np.uint8).ravel()
    else:
        pattern = np.empty(rows * g.row_size(dtype, row), np.uint8)
        g.quantize_chunk(dtype, values.ctypes.data, pattern.ctypes.data, 0, rows, row, None)
    return np.resize(pattern, size_bytes)


class Weights:
    """Random Q4_0 weights in the CPU's repacked layout.

    Scaled so that attention scores stay near 1: scores below -87 would make the exponentials
    subnormal, which the CPU computes up to ten times slower.
    """

    def __init__(self, g: Ggml, shape: Shape) -> None:
        q_dim = shape.heads * shape.head_dim
        sizes = {
            "q": (shape.hidden, q_dim),
            "k": (shape.hidden, shape.kv_dim),
            "v": (shape.hidden, shape.kv_dim),
            "o": (q_dim, shape.hidden),
            "gate": (shape.hidden, shape.ffn),
            "up": (shape.hidden, shape.ffn),
            "down": (shape.ffn, shape.hidden),
        }
        context = g.context(len(sizes) * shape.layers + 1)
        self.layers = [
            {name: g.new_tensor_2d(context, Q4_0, *size) for name, size in sizes.items()}
            for _ in range(shape.layers)
        ]
        self.output = g.new_tensor_2d(context, Q4_0, shape.hidden, shape.vocab)
        buffer = g.backend_alloc_ctx_tensors_from_buft(context, g.repack_buffer_type())
        g.backend_buffer_set_usage(buffer, 1)
        for tensor in [*(t for layer in self.layers for t in layer.values()), self.output]:
            content = quantized(g, Q4_0, g.nbytes(tensor), 1024, shape.hidden**-0.5)
            g.backend_tensor_set(tensor, content.ctypes.data, 0, content.nbytes)


class Step:
    """One step's graph over a cache: the attention of all layers, or with `weights` all of it."""

    def __init__(
        self,
        cache: Cache,
        slices: Sequence[Slice],
        variant: str,
        weights: Weights | None = None,
        num_cells: int | None = None,
    ) -> None:
        g, shape = cache.g, cache.shape
        self.g, self.cache, self.slices, self.variant = g, cache, slices, variant
        self.num_tokens = sum(s.num_tokens for s in slices)
        self.num_cells = num_cells or padded(max(s.stop for s in slices))
        self._context = g.context(shape.layers * (40 + 8 * len(slices)) + 64, graph=True)
        self._graph = g.new_graph_custom(self._context, binding.GRAPH_NODES, False)
        self._state_context = g.context(8 + len(slices))
        self.views: list[list[tuple[int, int]]] = []  # K and V views by layer and slice
        self._attend = self._plan_attention()
        self._inputs = self._create_inputs(bool(weights))
        self._state = g.backend_alloc_ctx_tensors_from_buft(self._state_context, g.host)
        self._fill_inputs()
        self._fill_masks()
        if weights:
            self._build_model(weights)
        else:
            self._build_attention()
        self._allocator = g.gallocr_new(g.host)
        if not g.gallocr_alloc_graph(self._allocator, self._graph):
            raise MemoryError("the graph's activations do not fit in memory")

    def run(self) -> None:
        if self.g.backend_graph_compute(self.g.backend, self._graph):
            raise RuntimeError("ggml failed to compute the graph")

    def close(self) -> None:
        self.g.gallocr_free(self._allocator)
        self.g.backend_buffer_free(self._state)
        self.g.free(self._context)
        self.g.free(self._state_context)

    @property
    def output(self) -> np.ndarray:
        """The last layer's attention [num_tokens, heads * head_dim], of an attention-only step."""
        width = self.cache.shape.heads * self.cache.shape.head_dim
        return self.g.array(self._last, np.float32).reshape(self.num_tokens, width)

    # -- attention in each layout

    def _plan_attention(self) -> Callable[[int, int], int]:
        if self.variant == "pool":
            self._mask_sizes = [(self.num_tokens, self.num_cells)]
            attend = self._attend_pool
        elif self.variant == "streams":
            self._stream_cells = self.slices[0].stop - self.slices[0].first
            self._mask_sizes = [(self.num_tokens, self._stream_cells)]
            attend = self._attend_streams
        else:
            folded = self.variant == "folded"
            self._mask_sizes = [
                (self._folded_rows(s.num_tokens) if folded else s.num_tokens, s.stop - s.first)
                for s in self.slices
            ]
            attend = self._attend_slices
        self.masks = [
            self.g.new_tensor_2d(self._state_context, F16, cells, tokens)
            for tokens, cells in self._mask_sizes
        ]
        return attend

    @property
    def mask_arrays(self) -> list[np.ndarray]:
        """The masks' memory, each [tokens, cells]."""
        return [
            self.g.array(mask, np.float16).reshape(size)
            for mask, size in zip(self.masks, self._mask_sizes, strict=True)
        ]

    def _fill_masks(self) -> None:
        arrays = self.mask_arrays
        start = 0
        for i, piece in enumerate(self.slices):
            if self.variant == "pool":
                fill_mask(arrays[0][start : start + piece.num_tokens], piece)
            elif self.variant == "streams":
                fill_mask(arrays[0][start : start + piece.num_tokens], piece, piece.first)
            else:
                rows = np.empty((piece.num_tokens, arrays[i].shape[1]), np.float16)
                fill_mask(rows, piece, piece.first)
                if self.variant == "folded":
                    shape = self.cache.shape
                    rows = rows.repeat(shape.heads // shape.kv_heads, 0)
                    arrays[i][len(rows) :] = -np.inf
                arrays[i][: len(rows)] = rows
            start += piece.num_tokens

    def _view(self, tensor: int, first: int, num_cells: int) -> int:
        shape, row = self.cache.shape, self.g.row_size
        cell = row(self.cache.kv_type, shape.kv_dim)
        head = row(self.cache.kv_type, shape.head_dim)
        return self.g.view_3d(
            self._context, tensor, shape.head_dim, num_cells, shape.kv_heads, cell, head,
            first * cell,
        )  # fmt: skip

    def _flash(self, q: int, k: int, v: int, mask: int | None) -> int:
        scale = 1 / math.sqrt(self.cache.shape.head_dim)
        return self.g.flash_attn_ext(self._context, q, k, v, mask, scale, 0.0, 0.0)

    def _attend_pool(self, q: int, layer: int) -> int:
        k, v = (self._view(t[layer], 0, self.num_cells) for t in (self.cache.k, self.cache.v))
        q = self.g.permute(self._context, q, 0, 2, 1, 3)
        return self._flash(q, k, v, self.masks[0])

    def _attend_streams(self, q: int, layer: int) -> int:
        g, shape, row = self.g, self.cache.shape, self.g.row_size
        count, tokens = len(self.slices), self.slices[0].num_tokens
        cell, head = (row(self.cache.kv_type, d) for d in (shape.kv_dim, shape.head_dim))
        k, v = (
            g.view_4d(
                self._context, t[layer], shape.head_dim, self._stream_cells, shape.kv_heads, count,
                cell, head, self._stream_cells * cell, 0,
            )
            for t in (self.cache.k, self.cache.v)
        )  # fmt: skip
        token = shape.heads * shape.head_dim * 4
        q = g.view_4d(
            self._context, q, shape.head_dim, tokens, shape.heads, count,
            token, shape.head_dim * 4, tokens * token, 0,
        )  # fmt: skip
        mask = g.view_4d(
            self._context, self.masks[0], self._stream_cells, tokens, 1, count,
            self._stream_cells * 2, *[tokens * self._stream_cells * 2] * 2, 0,
        )  # fmt: skip
        return self._flash(q, k, v, mask)

    def _attend_slices(self, q: int, layer: int) -> int:
        g, shape = self.g, self.cache.shape
        token = shape.heads * shape.head_dim * 4
        # q must be computed before the first slice overwrites what the last layer joined.
        g.build_forward_expand(self._graph, q)
        start, views = 0, []
        self.views.append(views)
        for piece, mask in zip(self.slices, self.masks, strict=True):
            size = piece.stop - piece.first
            k, v = (self._view(t[layer], piece.first, size) for t in (self.cache.k, self.cache.v))
            views.append((k, v))
            part = g.view_3d(
                self._context, q, shape.head_dim, piece.num_tokens, shape.heads,
                token, shape.head_dim * 4, start * token,
            )  # fmt: skip
            if self.variant == "folded":
                out = self._attend_folded(part, k, v, mask, piece.num_tokens)
            else:
                masked = None if self.variant == "slices, no mask" else mask
                out = self._flash(part, k, v, masked)
            if self.variant in ("slices+cpy", "folded"):
                place = g.view_2d(
                    self._context, self._joined, token // 4, piece.num_tokens, token, start * token
                )
                flat = g.reshape_2d(self._context, out, token // 4, piece.num_tokens)
                out = g.cpy(self._context, flat, place)
            else:
                address = g.get_data(self._joined) + start * token
                g.backend_tensor_alloc(self._state, out, address)
            g.build_forward_expand(self._graph, out)
            start += piece.num_tokens
        return self._joined

    def _attend_folded(self, q: int, k: int, v: int, mask: int, num_tokens: int) -> int:
        """q [head_dim, tokens, heads] as [head_dim, tokens · heads / kv_heads, kv_heads]."""
        g, c, shape = self.g, self._context, self.cache.shape
        share, used = shape.heads // shape.kv_heads, self._folded_rows(num_tokens, 0)
        head = shape.head_dim * 4
        source = g.view_4d(
            c, q, shape.head_dim, share, num_tokens, shape.kv_heads,
            head, shape.heads * head, share * head, 0,
        )  # fmt: skip
        rows = self._folded_rows(num_tokens)
        target = g.view_4d(
            c, self._folded_q, shape.head_dim, share, num_tokens, shape.kv_heads,
            head, share * head, rows * head, 0,
        )  # fmt: skip
        g.build_forward_expand(self._graph, g.cpy(c, source, target))
        folded = g.view_3d(
            c, self._folded_q, shape.head_dim, rows, shape.kv_heads, head, rows * head, 0
        )
        out = self._flash(folded, k, v, mask)  # [head_dim, kv_heads, rows]
        out = g.view_4d(
            c, out, shape.head_dim, share, shape.kv_heads, used // share,
            shape.kv_heads * head, head, share * shape.kv_heads * head, 0,
        )  # fmt: skip
        return g.cont_2d(c, out, shape.heads * shape.head_dim, num_tokens)

    def _folded_rows(self, num_tokens: int, at_least: int = 64) -> int:
        return max(at_least, num_tokens * self.cache.shape.heads // self.cache.shape.kv_heads)

    # -- what surrounds it

    def _create_inputs(self, whole_model: bool) -> list[int]:
        """Tensors of our own: the graph's allocator would reuse the memory of its inputs."""
        g, c, shape, n = self.g, self._state_context, self.cache.shape, self.num_tokens
        self._joined = g.new_tensor_2d(c, F32, shape.heads * shape.head_dim, n)
        longest = max(self._folded_rows(s.num_tokens) for s in self.slices)
        self._folded_q = g.new_tensor_3d(c, F32, shape.head_dim, longest, shape.kv_heads)
        if not whole_model:
            return [g.new_tensor_3d(c, F32, shape.head_dim, shape.heads, n)]
        return [
            g.new_tensor_2d(c, F32, shape.hidden, n),
            g.new_tensor_1d(c, I32, n),
            g.new_tensor_1d(c, I64, n),
        ]

    def _fill_inputs(self) -> None:
        x = self.g.array(self._inputs[0], np.float32)
        x[:] = np.random.default_rng(1).standard_normal(x.size)
        if len(self._inputs) > 1:
            lengths = [(len(s.cells), s.num_tokens) for s in self.slices]
            positions = [np.arange(length - n, length) for length, n in lengths]
            cells = [s.cells[-s.num_tokens :] for s in self.slices]
            self.g.array(self._inputs[1], np.int32)[:] = np.concatenate(positions)
            self.g.array(self._inputs[2], np.int64)[:] = np.concatenate(cells)

    def _build_attention(self) -> None:
        for layer in range(self.cache.shape.layers):
            self._last = self._attend(self._inputs[0], layer)
            self.g.build_forward_expand(self._graph, self._last)
        if self._last != self._joined:
            self.g.set_output(self._last)

    def _build_model(self, weights: Weights) -> None:
        g, shape, n, c = self.g, self.cache.shape, self.num_tokens, self._context
        x, positions, cells = self._inputs

        def rope(y: int, heads: int) -> int:
            y = g.reshape_3d(c, y, shape.head_dim, heads, n)
            return g.rope_ext(
                c, y, positions, None, shape.head_dim, 0, 0, 1e4, 1.0, 0.0, 1.0, 32.0, 1.0
            )

        for layer, w in enumerate(weights.layers):
            h = g.rms_norm(c, x, 1e-5)
            q, k = rope(g.mul_mat(c, w["q"], h), shape.heads), g.mul_mat(c, w["k"], h)
            k = g.reshape_2d(c, rope(k, shape.kv_heads), shape.kv_dim, n)
            for tensors, new in ((self.cache.k, k), (self.cache.v, g.mul_mat(c, w["v"], h))):
                g.build_forward_expand(self._graph, g.set_rows(c, tensors[layer], new, cells))
            attended = self._attend(q, layer)
            attended = g.reshape_2d(c, attended, shape.heads * shape.head_dim, n)
            x = g.add(c, x, g.mul_mat(c, w["o"], attended))
            h = g.rms_norm(c, x, 1e-5)
            h = g.swiglu_split(c, g.mul_mat(c, w["gate"], h), g.mul_mat(c, w["up"], h))
            x = g.add(c, x, g.mul_mat(c, w["down"], h))
        if n > len(self.slices):  # logits of one token a sequence
            x = g.view_2d(c, x, shape.hidden, len(self.slices), shape.hidden * 4, 0)
        logits = g.mul_mat(c, weights.output, g.rms_norm(c, x, 1e-5))
        g.set_output(logits)
        g.build_forward_expand(self._graph, logits)
