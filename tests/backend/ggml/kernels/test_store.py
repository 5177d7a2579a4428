"""Q and K are rotated, and K and V put into their cells, as numpy does it."""

from __future__ import annotations

from ctypes import addressof

import numpy as np
import pytest

from kernel_attention import HalfArray
from kernel_calls import (
    GuardedColumns,
    each_instruction_set,
    on_threads,
    set_sources,
    tensor_of,
)
from kernel_store import NUM_CELLS, UNTOUCHED, Store, assert_stored, random_store, turns
from kernel_weights import FloatArray
from powerserve.backend.ggml.kernels.library import KernelLibrary, StoreSpec


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


def check(kernels: KernelLibrary, store: Store, num_threads: int = 1) -> None:
    """All instruction sets rotate within rounding, and round to the nearest float16."""
    for name in each_instruction_set(kernels):
        assert_stored(store, *run(kernels, store, num_threads), name)


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
