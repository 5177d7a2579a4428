"""From a batch of any size to a compiled graph of the right shape."""

from __future__ import annotations

from collections import OrderedDict

from powerserve.backend.base import (
    Batch,
    Cache,
    Executable,
    FloatArray,
    LoadedModel,
    SliceShape,
    StepShape,
)

CELL_BLOCK = 256
"""Visible cells are rounded up to this, so a graph serves 256 decode steps before the next."""

ROW_TILE = 4
"""Token counts from 8 to 32 are rounded up to this: matrix kernels work on tiles of four rows, so
padding is almost free. Longer batches keep their size: compiling costs less than padding."""

MAX_EXECUTABLES = 48
"""Compiled graphs kept. One holds its ggml headers, about 0.5 MB for 30 layers, and no buffers."""


_ANY_SHAPE = StepShape((), 0)


class Executor:
    """Runs batches of one model over one cache."""

    def __init__(self, model: LoadedModel, cache: Cache, *, has_logits: bool = True) -> None:
        """Without logits only what the graph observes is of interest."""
        self._model = model
        self._cache = cache
        self._has_logits = has_logits
        self._compiles = model.capabilities.compiles
        self._executables: OrderedDict[StepShape, Executable] = OrderedDict()
        self._latest: Executable | None = None

    def reserve(self, max_tokens: int) -> None:
        """Compile the largest step now, so that shared buffers need not grow later."""
        if self._compiles:
            self._executable(StepShape((SliceShape(max_tokens, 0, self._cache.num_cells),), 1))

    def run(self, batch: Batch) -> FloatArray:
        """Logits [len(batch.output_rows), vocab], valid until the next run."""
        shape = step_shape(batch, self._cache.num_cells) if self._compiles else _ANY_SHAPE
        self._latest = self._executable(shape._replace(has_logits=self._has_logits))
        return self._latest.run(batch)

    def observed(self, name: str) -> FloatArray:
        """What the latest run's graph has observed under this name, valid until the next run."""
        assert self._latest is not None
        return self._latest.observed()[name]

    def close(self) -> None:
        """Drop every compiled graph."""
        while self._executables:
            self._executables.popitem()[1].close()

    def _executable(self, shape: StepShape) -> Executable:
        executable = self._executables.get(shape)
        if executable is None:
            executable = self._model.compile(shape, self._cache)
            self._executables[shape] = executable
            if len(self._executables) > MAX_EXECUTABLES:
                self._executables.popitem(last=False)[1].close()
        self._executables.move_to_end(shape)
        return executable


def cache_cells(model: LoadedModel, num_tokens: int) -> int:
    """The cells of a cache for so many tokens: whole blocks, as far as the model has them."""
    limit = model.capabilities.max_cells
    num_cells = _round_up(num_tokens, CELL_BLOCK)
    return num_cells if limit is None else min(num_cells, max(limit, num_tokens))


def step_shape(batch: Batch, num_cells: int) -> StepShape:
    """The shape to compile for a batch over a cache of `num_cells` cells."""
    last = len(batch.slices) - 1
    slices = []
    for index, piece in enumerate(batch.slices):
        num_tokens = len(piece.parents)
        visible = _round_up(piece.stop_cell - piece.first_cell, CELL_BLOCK)
        slices.append(
            SliceShape(
                round_tokens(num_tokens) if index == last else num_tokens,
                piece.first_cell,
                min(visible, num_cells - piece.first_cell),
            )
        )
    return StepShape(tuple(slices), round_tokens(len(batch.output_rows)))


def round_tokens(count: int) -> int:
    """The number of tokens a graph is compiled for when a step has `count`."""
    if 8 < count <= 32:
        return _round_up(count, ROW_TILE)
    return max(count, 1)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
