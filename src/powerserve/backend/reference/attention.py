"""Attention over exactly the cells that a batch makes visible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, BatchSlice, FloatArray, Int32Array, Int64Array
from powerserve.backend.reference.cache import ReferenceCache


def attend(
    q: FloatArray,
    k: FloatArray,
    v: FloatArray,
    *,
    layer: int,
    scale: float,
    batch: Batch,
    cache: ReferenceCache,
) -> FloatArray:
    """Store k and v [T, kv_heads, d] in the batch's cells; attend with q [T, heads, d].

    Returns [T, heads · d].
    """
    cache.store(layer, batch.cells, k, v)
    mixed = [_attend_slice(q, part, layer, scale, batch, cache) for part in batch.slices]
    return np.concatenate(mixed).reshape(len(q), -1)


def _attend_slice(
    q: FloatArray, part: BatchSlice, layer: int, scale: float, batch: Batch, cache: ReferenceCache
) -> FloatArray:
    """One sequence's tokens attend to its context and to each other: [n, heads, d]."""
    rows = slice(part.start, part.start + len(part.parents))
    earlier = _cached_ancestors(part)
    cells = np.concatenate([part.context, np.unique(earlier[earlier >= 0]), batch.cells[rows]])
    keys, values = cache.load(layer, cells)
    visible = (earlier[:, :, None] == cells).any(axis=1)  # [n, cells]
    visible[:, : len(part.context)] = True
    visible[:, -len(part.parents) :] = ancestors(part.parents)
    return masked_attention(q[rows], keys, values, visible, scale)


def _cached_ancestors(part: BatchSlice) -> Int64Array:
    """[n, levels], possibly with no level at all."""
    if part.cached_ancestors is None:
        return np.empty((len(part.parents), 0), np.int64)
    return part.cached_ancestors


def ancestors(parents: Int32Array) -> npt.NDArray[np.bool_]:
    """[n, n]: whether row's token may see column's, that is, descends from it or is it."""
    visible = np.eye(len(parents), dtype=bool)
    for token, parent in enumerate(parents):
        if parent >= 0:
            visible[token] |= visible[parent]
    return visible


def masked_attention(
    q: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    visible: npt.NDArray[np.bool_],
    scale: float,
) -> FloatArray:
    """softmax(q · kᵀ · scale) · v over the visible cells (Vaswani et al. 2017): [n, heads, d].

    q [n, heads, d]; keys, values [m, kv_heads, d]; visible [n, m]. Consecutive query heads share a
    key head (grouped-query attention, Ainslie et al. 2023).
    """
    heads_per_key_head = q.shape[1] // keys.shape[1]
    keys = np.repeat(keys, heads_per_key_head, axis=1)  # [m, heads, d]
    values = np.repeat(values, heads_per_key_head, axis=1)
    scores = q.transpose(1, 0, 2) @ keys.transpose(1, 2, 0) * np.float32(scale)  # [heads, n, m]
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed: FloatArray = weights @ values.transpose(1, 0, 2)  # [heads, n, d]
    return mixed.transpose(1, 0, 2)
