"""Attention as the kernels are asked for it, and what it should be, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof, byref, c_int32
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from error_bounds import ROUNDING, Bounded
from kernel_calls import GuardedColumns, on_threads, set_sources, tensor_of
from kernel_weights import DoubleArray, FloatArray
from powerserve.backend.ggml.kernels.library import AttentionSpec, KernelLibrary, SliceSpec

BFLOAT16_ROUNDING = 2.0**-8

HalfArray = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Sequence:
    """Some tokens, and which cells each sees: [tokens, cells] from `first_cell` on."""

    visible: npt.NDArray[np.bool_]
    first_cell: int = 0


@dataclass(frozen=True, eq=False)
class Attention:
    """Attention of all sequences of a step, one after the other."""

    q: FloatArray = field(repr=False)  # [tokens, heads, head_dim]
    keys: HalfArray = field(repr=False)  # [cells, kv_heads, head_dim]
    values: HalfArray = field(repr=False)
    sequences: tuple[Sequence, ...]
    scale: float = 0.125

    @property
    def heads_per_kv(self) -> int:
        """Query heads that share keys and values."""
        return self.q.shape[1] // self.keys.shape[1]


def expected_attention(case: Attention, *, bfloat16: bool) -> Bounded:
    """The result [tokens, heads, head_dim]; with `bfloat16`, weights may be rounded to that.

    Numbers of up to 8 significant bits and a scale that is a power of two are no subject to
    rounding themselves.
    """
    parts = []
    first = 0
    for sequence in case.sequences:
        count = len(sequence.visible)
        parts.append(_of_sequence(case, sequence, case.q[first : first + count], bfloat16))
        first += count
    return Bounded(
        np.concatenate([each.value for each in parts]),
        np.concatenate([each.error for each in parts]),
    )


def _of_sequence(case: Attention, sequence: Sequence, q: FloatArray, bfloat16: bool) -> Bounded:
    num_cells = sequence.visible.shape[1]
    cells = slice(sequence.first_cell, sequence.first_cell + num_cells)
    keys, values = (
        each[cells].astype(np.float64).repeat(case.heads_per_kv, axis=1).swapaxes(0, 1)
        for each in (case.keys, case.values)
    )
    q = q.astype(np.float64).swapaxes(0, 1) * case.scale
    scores = np.where(sequence.visible, q @ keys.swapaxes(1, 2), -np.inf)  # [heads, tokens, cells]
    magnitudes = np.where(sequence.visible, np.abs(q) @ np.abs(keys).swapaxes(1, 2), 0)
    with np.errstate(invalid="ignore"):  # a token that sees nothing
        below = scores - scores.max(axis=2, keepdims=True)
    weights = np.where(sequence.visible, np.exp(below), 0)
    weights /= np.maximum(weights.sum(axis=2, keepdims=True), 1)
    relative = _relative_error(magnitudes, np.where(sequence.visible, below, 0), q.shape[2])
    rounding = BFLOAT16_ROUNDING if bfloat16 else 0.0
    error = weights @ np.abs(values) * (2 * relative + rounding) + 1e-30
    return Bounded((weights @ values).swapaxes(0, 1), error.swapaxes(0, 1))


def _relative_error(magnitudes: DoubleArray, below: DoubleArray, head_dim: int) -> DoubleArray:
    """Of weights and their sums, [heads, tokens, 1].

    Scores are sums of head_dim products. Exponents are rounded, also those that scale earlier
    results whenever a larger score comes, and both sums are over all cells.
    """
    scores = (head_dim + 2) * ROUNDING * magnitudes.max(axis=2, keepdims=True, initial=0)
    exponents = np.minimum(-below, 104).max(axis=2, keepdims=True, initial=0)
    return 2 * scores + ROUNDING * (2 * exponents + 2 * below.shape[2] + 32)


class AttentionExecution:
    """An operation with its tensors laid out; runs as often as wanted."""

    def __init__(self, kernels: KernelLibrary, case: Attention, *, num_threads: int = 1) -> None:
        self._kernels = kernels
        self._shape = case.q.shape
        self._num_threads = num_threads
        self._spec = attention_spec(case)
        self._result = GuardedColumns(1, kernels.attention_floats(byref(self._spec)))
        flat = (len(case.keys), -1)
        self._arrays = [case.q, case.keys.reshape(flat), case.values.reshape(flat), masks_of(case)]
        self._tensors = [tensor_of(each) for each in self._arrays]
        set_sources(self._result.tensor, self._tensors)

    def run(self) -> FloatArray:
        """The result [tokens, heads, head_dim] of one execution."""
        self._result.clear()
        on_threads(self._num_threads, self._call())
        self._result.check()
        size = int(np.prod(self._shape))
        return self._result.values[0, :size].reshape(self._shape).copy()

    def _call(self) -> Callable[[int, int], None]:
        addresses = addressof(self._result.tensor), addressof(self._spec)
        return lambda ith, nth: self._kernels.op_attention(addresses[0], ith, nth, addresses[1])


def attention_spec(case: Attention) -> AttentionSpec:
    """The operation's user data."""
    num_tokens, num_heads, head_dim = case.q.shape
    num_kv_heads = case.keys.shape[1]
    spec = AttentionSpec(scale=case.scale, num_slices=len(case.sequences))
    spec.slices = (SliceSpec * len(case.sequences))(*_slices(case))
    spec.head_dim, spec.num_heads, spec.num_kv_heads = head_dim, num_heads, num_kv_heads
    spec.num_finished = (c_int32 * (num_tokens * num_kv_heads))()
    return spec


def _slices(case: Attention) -> list[SliceSpec]:
    slices, first, offset = [], 0, 0
    for sequence in case.sequences:
        num_tokens, num_cells = sequence.visible.shape
        slices.append(SliceSpec(first, num_tokens, sequence.first_cell, num_cells, offset))
        first += num_tokens
        offset += num_tokens * num_cells
    return slices


def masks_of(case: Attention) -> HalfArray:
    """Those of all sequences, one after the other."""
    visible = np.concatenate([each.visible.ravel() for each in case.sequences])
    return np.where(visible, 0, -np.inf).astype(np.float16)
