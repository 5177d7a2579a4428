"""Try what comes before attention: heads are turned to their positions, and put into cells."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.kernels.bare_tensors import bare_tensor
from powerserve.backend.ggml.kernels.check_products import check_close
from powerserve.backend.ggml.kernels.library import KernelLibrary, StoreSpec

HEAD_DIM, ROPE_DIM, NUM_HEADS, NUM_KV_HEADS = 64, 32, 6, 2  # half of a head stays as it is
NUM_TOKENS, NUM_CELLS = 5, 8


@dataclass(frozen=True, slots=True)
class Inputs:
    """The heads of some tokens, how far they are turned, and where they go."""

    q: FloatArray  # [tokens, NUM_HEADS, HEAD_DIM]
    k: FloatArray  # [tokens, NUM_KV_HEADS, HEAD_DIM]
    v: FloatArray
    angles: FloatArray  # [tokens, ROPE_DIM / 2]
    cells: npt.NDArray[np.int64]


def check_storing(library: KernelLibrary) -> None:
    """Store random heads with every instruction set and compare with numpy.

    Raises:
        BackendError: a result is wrong.
    """
    inputs = random_inputs(np.random.default_rng(0))
    for is_half_split in (False, True):
        expected = stored(inputs, is_half_split)
        for instruction_set, found in results(library, inputs, is_half_split):
            what = f"turned heads of {NUM_TOKENS} tokens with {instruction_set}"
            check_close(found, expected, what)


def random_inputs(rng: np.random.Generator) -> Inputs:
    """Any heads and angles, cells in any order."""

    def heads(count: int) -> FloatArray:
        return rng.standard_normal((NUM_TOKENS, count, HEAD_DIM), np.float32)

    angles = rng.uniform(-3, 3, (NUM_TOKENS, ROPE_DIM // 2)).astype(np.float32)
    cells = rng.permutation(NUM_CELLS)[:NUM_TOKENS].astype(np.int64)
    return Inputs(heads(NUM_HEADS), heads(NUM_KV_HEADS), heads(NUM_KV_HEADS), angles, cells)


def stored(inputs: Inputs, is_half_split: bool) -> FloatArray:
    """The turned queries, then keys and values of all cells, as one row of numbers."""
    keys, values = np.zeros((2, NUM_CELLS, NUM_KV_HEADS, HEAD_DIM), np.float32)
    keys[inputs.cells] = turned(inputs.k, inputs.angles, is_half_split)
    values[inputs.cells] = inputs.v
    q = turned(inputs.q, inputs.angles, is_half_split)
    return np.concatenate([each.reshape(-1) for each in (q, keys, values)])


def turned(heads: FloatArray, angles: FloatArray, is_half_split: bool) -> FloatArray:
    """Pairs of the first ROPE_DIM dimensions, turned as if they were points of a plane."""
    half = ROPE_DIM // 2
    pairs = (slice(0, half), slice(half, ROPE_DIM))
    first, second = pairs if is_half_split else (slice(0, ROPE_DIM, 2), slice(1, ROPE_DIM, 2))
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    result = heads.copy()
    result[..., first] = heads[..., first] * cosine - heads[..., second] * sine
    result[..., second] = heads[..., first] * sine + heads[..., second] * cosine
    return result


def results(
    library: KernelLibrary, inputs: Inputs, is_half_split: bool
) -> Iterator[tuple[str, FloatArray]]:
    """What each instruction set makes of them, ordered as in `stored`."""
    for instruction_set in library.instruction_sets:
        library.use(instruction_set)
        yield instruction_set, store(library, inputs, is_half_split)


def store(library: KernelLibrary, inputs: Inputs, is_half_split: bool) -> FloatArray:
    """What the operation makes of them when one thread executes it."""
    turns = np.concatenate([np.cos(inputs.angles), np.sin(inputs.angles)], axis=1)
    cache = np.zeros((2, NUM_CELLS, NUM_KV_HEADS * HEAD_DIM), np.float16)
    out = np.full_like(inputs.q, np.nan)
    arrays = (inputs.q, inputs.k, inputs.v, turns, inputs.cells, *cache)
    sources = [bare_tensor(each) for each in arrays]
    result = bare_tensor(out, *sources)
    spec = StoreSpec(rope_dim=ROPE_DIM, is_half_split=is_half_split)
    library.op_store(ctypes.addressof(result), 0, 1, ctypes.addressof(spec))
    return np.concatenate([out.reshape(-1), cache.astype(np.float32).reshape(-1)])
