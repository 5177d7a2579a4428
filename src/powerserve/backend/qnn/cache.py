"""The KV cache in the input buffers of the compiled graphs: keys transposed, one plane per head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from powerserve.backend.base import Cache, Int64Array
from powerserve.backend.qnn.runtime.base import Array
from powerserve.core.errors import BackendError

FLOAT16_BYTES = 2


class HeadPlanes(NamedTuple):
    """Keys and values of the heads of some layers, float16."""

    keys: Array  # in the cache [heads, head_dim, cells]; new ones [heads, B, head_dim]
    values: Array  # in the cache [heads, cells, head_dim]; new ones [heads, B, head_dim]


class CacheBuffers:
    """The graphs' buffers: the cache that is used has its content there, others keep theirs aside.

    Mostly there is one cache, and nothing is ever moved.
    """

    def __init__(self, planes: Sequence[HeadPlanes]) -> None:
        """`planes`: of each chunk."""
        self.planes = planes
        self._occupant: QnnCache | None = None
        self._aside: dict[QnnCache, list[HeadPlanes]] = {}

    def claim(self, cache: QnnCache) -> Sequence[HeadPlanes]:
        """The buffers with this cache's content; a new cache is all zeros."""
        if self._occupant is not cache:
            self._move_out()
            self._move_in(cache)
        return self.planes

    def release(self, cache: QnnCache) -> None:
        """Forget a cache."""
        self._aside.pop(cache, None)
        if self._occupant is cache:
            self._occupant = None

    def _move_out(self) -> None:
        if self._occupant is not None:
            self._aside[self._occupant] = [
                HeadPlanes(each.keys.copy(), each.values.copy()) for each in self.planes
            ]

    def _move_in(self, cache: QnnCache) -> None:
        self._occupant = cache
        content = self._aside.pop(cache, None)
        for index, (keys, values) in enumerate(self.planes):
            keys[:] = 0 if content is None else content[index].keys
            values[:] = 0 if content is None else content[index].values


class QnnCache(Cache):
    """The cells that batches name: those of the buffers without `num_front` at their beginning.

    Saved cells are float16 [keys and values][heads of all layers][cells][head_dim].
    """

    def __init__(self, buffers: CacheBuffers, num_cells: int, num_front: int = 0) -> None:
        self.num_cells = num_cells
        self._buffers = buffers
        self._num_front = num_front
        self._num_heads = sum(len(each.keys) for each in buffers.planes)
        self._head_dim: int = buffers.planes[0].keys.shape[1]
        self.size_bytes = num_cells * self._bytes_of(1)

    def claim(self) -> Sequence[HeadPlanes]:
        """Put the content into the graphs' buffers, if another cache's is there."""
        return self._buffers.claim(self)

    def fill_front(self, content: bytes) -> None:
        """Write saved content into the cells that no batch names."""
        self._write(np.arange(self._num_front), content)

    def store(self, chunk: int, cells: Int64Array, new: HeadPlanes) -> None:
        """Write the first K and V that a chunk has made into `cells`."""
        target, where = self.claim()[chunk], _contiguous(cells + self._num_front)
        target.keys[:, :, where] = new.keys[:, : len(cells)].transpose(0, 2, 1)
        target.values[:, where] = new.values[:, : len(cells)]

    def copy(self, source: Int64Array, target: Int64Array) -> None:
        source, target = source + self._num_front, target + self._num_front
        for keys, values in self.claim():
            keys[:, :, target] = keys[:, :, source]
            values[:, target] = values[:, source]

    def save(self, cells: Int64Array) -> bytes:
        where = cells + self._num_front
        keys = [each.keys[:, :, where].transpose(0, 2, 1) for each in self.claim()]
        values = [each.values[:, where] for each in self.claim()]
        return np.concatenate([*keys, *values]).tobytes()

    def restore(self, cells: Int64Array, content: bytes) -> None:
        self._write(cells + self._num_front, content)

    def close(self) -> None:
        self._buffers.release(self)

    def _write(self, where: Int64Array, content: bytes) -> None:
        if len(content) != self._bytes_of(len(where)):
            raise BackendError(
                f"{len(content)} bytes do not hold {len(where)} cells of this cache, which take "
                f"{self._bytes_of(len(where))}"
            )
        shape = (2, self._num_heads, len(where), self._head_dim)
        keys, values = np.frombuffer(content, np.float16).reshape(shape)
        first = 0
        for target in self.claim():
            stop = first + len(target.keys)
            target.keys[:, :, where] = keys[first:stop].transpose(0, 2, 1)
            target.values[:, where] = values[first:stop]
            first = stop

    def _bytes_of(self, num_cells: int) -> int:
        return 2 * self._num_heads * num_cells * self._head_dim * FLOAT16_BYTES


def _contiguous(cells: Int64Array) -> Int64Array | slice:
    """Cells that follow one another as a slice, which numpy copies several times as fast."""
    first, stop = int(cells[0]), int(cells[0]) + len(cells)
    follow = len(cells) == 1 or bool((cells == np.arange(first, stop)).all())
    return slice(first, stop) if follow else cells
