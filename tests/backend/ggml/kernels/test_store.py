"""Q and K are rotated, and K and V put into their cells, as numpy does it."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass, field

import numpy as np
import pytest

from error_bounds import ROUNDING, SMALLEST_NORMAL, Bounded, assert_within
from kernel_attention import HalfArray
from kernel_calls import (
    GuardedColumns,
    each_instruction_set,
    on_threads,
    set_sources,
    tensor_of,
)
from kernel_weights import FloatArray
from powerserve.backend.ggml.kernels.library import KernelLibrary, StoreSpec

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


def run(
    kernels: KernelLibrary, store: Store, num_threads: int = 1
) -> tuple[FloatArray, HalfArray, HalfArray]:
    """The rotated queries, and caches [NUM_CELLS, kv_heads, head_dim] of keys and of values."""
    num_tokens, num_heads, dim = store.q.shape
    result = GuardedColumns(1, num_tokens * num_heads * dim)
    caches = [np.full((NUM_CELLS, store.k.shape[1] * dim), UNTOUCHED) for _ in "kv"]
    spec = StoreSpec(2 * store.angles.shape[1], store.is_half_split)
    cells = np.array(store.cells, np.int64)
    arrays = [store.q, store.k, store.v, turns(store), cells, *caches]
    tensors = [tensor_of(each) for each in arrays]
    set_sources(result.tensor, tensors)
    tensor, user_data = addressof(result.tensor), addressof(spec)
    on_threads(num_threads, lambda ith, nth: kernels.op_store(tensor, ith, nth, user_data))
    result.check()
    keys, values = (each.reshape(NUM_CELLS, -1, dim) for each in caches)
    return result.values[0].reshape(store.q.shape).copy(), keys, values


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


def check(kernels: KernelLibrary, store: Store, num_threads: int = 1) -> None:
    """All instruction sets rotate within rounding, and round to the nearest float16."""
    others = [cell for cell in range(NUM_CELLS) if cell not in store.cells]
    wanted = rotated(store, store.k)
    low, high = (
        (wanted.value + sign * wanted.error).astype(np.float32).astype(np.float16)
        for sign in (-1, 1)
    )
    for name in each_instruction_set(kernels):
        q, keys, values = run(kernels, store, num_threads)
        assert_within(q, rotated(store, store.q), name)
        stored = keys[list(store.cells)]
        assert ((low <= stored) & (stored <= high)).all(), name
        expected = store.v.astype(np.float16)
        np.testing.assert_array_equal(values[list(store.cells)], expected, err_msg=name)
        assert (keys[others] == UNTOUCHED).all(), name
        assert (values[others] == UNTOUCHED).all(), name


@pytest.mark.parametrize("is_half_split", [True, False])
@pytest.mark.parametrize(("dim", "rope_dim"), [(32, 32), (64, 64), (96, 32), (128, 128), (256, 64)])
def test_heads_of_any_size(
    kernels: KernelLibrary, dim: int, rope_dim: int, is_half_split: bool
) -> None:
    """Dimensions beyond those of the position embedding stay as they are."""
    rng = np.random.default_rng(1)
    for num_tokens in (1, 5):
        store = random_store(
            rng, num_tokens, dim=dim, rope_dim=rope_dim, is_half_split=is_half_split
        )
        check(kernels, store)


@pytest.mark.parametrize("num_threads", [2, 3, 4])
def test_threads_share_the_tokens(kernels: KernelLibrary, num_threads: int) -> None:
    rng = np.random.default_rng(2)
    for num_tokens in (1, 3, 17, NUM_CELLS):
        check(kernels, random_store(rng, num_tokens), num_threads)


def test_values_of_any_size(kernels: KernelLibrary) -> None:
    """Too large for float16, subnormal in it, halfway between two of its numbers, and broken."""
    numbers = [0.0, -0.0, 65504, 65519, 65520, 1e30, 2.0**-24, 2.0**-25, 3e-8, 1e-40, np.inf]
    numbers += [1 + 2.0**-11, 1 + 3 * 2.0**-11, np.nan]
    store = random_store(np.random.default_rng(3), 4)
    store.v[..., : len(numbers)] = numbers
    store.v[2:] *= -1
    with np.errstate(over="ignore"):  # numpy says that numbers become infinite
        check(kernels, store)
