"""Storing K and V with rotated positions, as the kernels are asked for it, and in numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from error_bounds import ROUNDING, SMALLEST_NORMAL, Bounded, assert_within
from kernel_attention import HalfArray
from kernel_weights import FloatArray

NUM_CELLS = 50
UNTOUCHED = np.float16(-7.5)


@dataclass(frozen=True, eq=False)
class Store:
    """Some tokens' queries, keys and values [tokens, heads, head_dim], and where they go."""

    q: FloatArray = field(repr=False)
    k: FloatArray = field(repr=False)
    v: FloatArray = field(repr=False)
    angles: FloatArray = field(repr=False)  # [tokens, pairs]
    cells: tuple[int, ...]
    is_half_split: bool = True


def random_store(
    rng: np.random.Generator,
    num_tokens: int,
    *,
    dim: int = 64,
    rope_dim: int = 64,
    is_half_split: bool = True,
) -> Store:
    """Six query heads and two of keys and values, beside each other as one product leaves them."""
    qkv = rng.standard_normal((num_tokens, 10, dim)).astype(np.float32)
    angles = rng.uniform(-np.pi, np.pi, (num_tokens, rope_dim // 2)).astype(np.float32)
    cells = tuple(int(cell) for cell in rng.permutation(NUM_CELLS)[:num_tokens])
    return Store(qkv[:, :6], qkv[:, 6:8], qkv[:, 8:], angles, cells, is_half_split)


def turns(store: Store) -> FloatArray:
    """Cosines of all pairs, then sines: [tokens, rope_dim]."""
    return np.concatenate([np.cos(store.angles), np.sin(store.angles)], axis=1)


def rotated(store: Store, x: FloatArray) -> Bounded:
    """Queries or keys, turned as pairs of numbers. Source: RoFormer, arXiv:2104.09864."""
    pairs = store.angles.shape[1]
    first, second = np.arange(pairs), np.arange(pairs) + pairs
    if not store.is_half_split:
        first, second = 2 * np.arange(pairs), 2 * np.arange(pairs) + 1
    cos, sin = (each.astype(np.float64)[:, None] for each in np.split(turns(store), 2, axis=1))
    a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
    value, error = x.astype(np.float64), np.zeros(x.shape)
    value[..., first], value[..., second] = a * cos - b * sin, a * sin + b * cos
    error[..., first] = 2 * ROUNDING * (np.abs(a * cos) + np.abs(b * sin)) + SMALLEST_NORMAL
    error[..., second] = 2 * ROUNDING * (np.abs(a * sin) + np.abs(b * cos)) + SMALLEST_NORMAL
    return Bounded(value, error)


def assert_stored(
    store: Store, q: FloatArray, keys: HalfArray, values: HalfArray, context: object
) -> None:
    """Rotated within rounding, then the nearest float16; other cells have not been touched."""
    others = [cell for cell in range(NUM_CELLS) if cell not in store.cells]
    wanted = rotated(store, store.k)
    low, high = (
        (wanted.value + sign * wanted.error).astype(np.float32).astype(np.float16)
        for sign in (-1, 1)
    )
    assert_within(q, rotated(store, store.q), context)
    stored = keys[list(store.cells)]
    assert ((low <= stored) & (stored <= high)).all(), context
    expected = store.v.astype(np.float16)
    np.testing.assert_array_equal(values[list(store.cells)], expected, err_msg=str(context))
    assert (keys[others] == UNTOUCHED).all(), context
    assert (values[others] == UNTOUCHED).all(), context
