"""Try attention: every instruction set against numpy, as check_products.py does with products."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.ggml.kernels.bare_tensors import bare_tensor
from powerserve.backend.ggml.kernels.check_products import check_close
from powerserve.backend.ggml.kernels.library import AttentionSpec, KernelLibrary, SliceSpec

HEAD_DIM, NUM_HEADS, NUM_KV_HEADS = 64, 6, 2
NUM_CELLS = 520  # are divided between threads if there is one token
TOKENS = (1, 9)
SCALE = 0.125


@dataclass(frozen=True, slots=True)
class Inputs:
    """Queries of one sequence, and the cells that they see."""

    q: FloatArray  # [tokens, NUM_HEADS, HEAD_DIM]
    keys: npt.NDArray[np.float16]  # [NUM_CELLS, NUM_KV_HEADS, HEAD_DIM]
    values: npt.NDArray[np.float16]
    mask: npt.NDArray[np.float16]  # [tokens, NUM_CELLS]


def check_attention(library: KernelLibrary) -> None:
    """Attend to random cells with every instruction set and compare with numpy.

    Raises:
        BackendError: a result is wrong.
    """
    rng = np.random.default_rng(0)
    for tokens in TOKENS:
        inputs = random_inputs(rng, tokens)
        expected = attention(inputs)
        for instruction_set, found in attended(library, inputs):
            what = f"attention results of {tokens} tokens with {instruction_set}"
            check_close(found, expected, what)


def random_inputs(rng: np.random.Generator, tokens: int) -> Inputs:
    """Each token sees some two thirds of the cells."""
    kv_shape = (NUM_CELLS, NUM_KV_HEADS, HEAD_DIM)
    hidden = rng.random((tokens, NUM_CELLS)) < 1 / 3
    return Inputs(
        rng.standard_normal((tokens, NUM_HEADS, HEAD_DIM), np.float32),
        rng.standard_normal(kv_shape).astype(np.float16),
        rng.standard_normal(kv_shape).astype(np.float16),
        np.where(hidden, np.float16(-np.inf), np.float16(0)),
    )


def attention(inputs: Inputs) -> FloatArray:
    """softmax(q · k · SCALE + mask) · v, [tokens, NUM_HEADS · HEAD_DIM]."""
    sharing = NUM_HEADS // NUM_KV_HEADS
    keys, values = (
        np.repeat(each.astype(np.float32), sharing, axis=1) for each in (inputs.keys, inputs.values)
    )
    scores = np.einsum("thd,chd->thc", inputs.q, keys) * SCALE + inputs.mask[:, None, :]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed: FloatArray = np.einsum("thc,chd->thd", weights, values)
    return mixed.reshape(len(inputs.q), -1)


def attended(library: KernelLibrary, inputs: Inputs) -> Iterator[tuple[str, FloatArray]]:
    """What each instruction set makes of them."""
    for instruction_set in library.instruction_sets:
        library.use(instruction_set)
        yield instruction_set, attend(library, inputs)


def attend(library: KernelLibrary, inputs: Inputs) -> FloatArray:
    """What the operation makes of them when one thread executes it."""
    tokens, width = len(inputs.q), NUM_HEADS * HEAD_DIM
    piece = SliceSpec(num_tokens=tokens, num_cells=NUM_CELLS)
    spec = AttentionSpec(scale=SCALE, num_slices=1, slices=ctypes.pointer(piece))
    spec.head_dim, spec.num_heads, spec.num_kv_heads = HEAD_DIM, NUM_HEADS, NUM_KV_HEADS
    spec.num_finished = (ctypes.c_int32 * (tokens * NUM_KV_HEADS))()
    out = np.full(library.attention_floats(ctypes.byref(spec)), np.nan, np.float32)
    keys, values = (each.reshape(NUM_CELLS, -1) for each in (inputs.keys, inputs.values))
    cells = [bare_tensor(keys), bare_tensor(values)]
    sources = [bare_tensor(inputs.q), *cells, bare_tensor(inputs.mask)]
    result = bare_tensor(out, *sources)
    library.op_attention(ctypes.addressof(result), 0, 1, ctypes.addressof(spec))
    return out[: tokens * width].reshape(tokens, width)
