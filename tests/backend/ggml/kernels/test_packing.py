"""Weights are the same numbers in panels as in a file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_calls import num_panels, pack_panels, packed
from kernel_weights import TYPES, ByteArray, FloatArray, KernelWeight, random_bytes
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.core import dtypes
from powerserve.core.dtypes import Q4_0, Q4_K, Q6_K, DType

LINE = 64  # bytes, to which a panel is padded


def unpacked(
    kernels: KernelLibrary, weight: KernelWeight, memory: ByteArray, first: int, count: int
) -> FloatArray:
    """Some rows of a packed weight."""
    values = np.empty((count, weight.in_features), np.float32)
    size = (weight.rows, weight.in_features)
    source, target = memory.ctypes.data, values.ctypes.data
    kernels.unpack(weight.dtype.ggml_id, *size, source, target, first, count)
    return values


@st.composite
def weights(draw: st.DrawFn) -> KernelWeight:
    """Any bytes of any type and size."""
    dtype = draw(st.sampled_from(TYPES))
    rows, num_blocks, seed = (draw(st.integers(*ends)) for ends in [(1, 50), (1, 5), (0, 9999)])
    rng = np.random.default_rng(seed)
    return random_bytes(rng, dtype, rows, num_blocks * dtype.block_size)


@settings(max_examples=200)
@given(weight=weights())
def test_every_bit_is_kept(kernels: KernelLibrary, weight: KernelWeight) -> None:
    """Scale times quant is exact in float32, so the difference is rounded once, and equal.

    Scales that are infinite or not numbers give weights that are not finite, either way.
    """
    values = unpacked(kernels, weight, packed(kernels, weight), 0, weight.rows)
    finite = np.isfinite(weight.values)
    np.testing.assert_array_equal(values[finite], weight.values[finite])
    assert not np.isfinite(values[~finite]).any()


@given(weight=weights(), data=st.data())
def test_some_rows_are_as_among_all(
    kernels: KernelLibrary, weight: KernelWeight, data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, weight.rows - 1))
    count = data.draw(st.integers(1, weight.rows - first))
    values = unpacked(kernels, weight, packed(kernels, weight), first, count)
    finite = np.isfinite(weight.values)[first : first + count]
    np.testing.assert_array_equal(values[finite], weight.values[first : first + count][finite])


@given(weight=weights(), data=st.data())
def test_parts_make_the_whole(
    kernels: KernelLibrary, weight: KernelWeight, data: st.DataObject
) -> None:
    """In any order, whatever was in the memory, and without a touch of other panels."""
    whole = packed(kernels, weight)
    count = num_panels(weight.rows)
    cut = data.draw(st.integers(0, count))
    memory = np.full(whole.nbytes + LINE, 0xA5, np.uint8)
    start = cut * (whole.nbytes // count)
    pack_panels(kernels, weight, memory, cut, count - cut)
    assert (memory[:start] == 0xA5).all()
    pack_panels(kernels, weight, memory, 0, cut)
    np.testing.assert_array_equal(memory[:-LINE], whole)
    assert (memory[-LINE:] == 0xA5).all()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("size", [(576, 1536), (896, 4864), (8960, 1536), (1536, 8960), (96, 256)])
def test_a_packed_weight_takes_no_more_memory(
    kernels: KernelLibrary, dtype: DType, size: tuple[int, int]
) -> None:
    """Panels are a file's bytes in another order; some are padded to whole cache lines."""
    rows, in_features = size
    file_bytes = dtype.size_bytes(rows * in_features)
    packed_bytes = kernels.packed_bytes(dtype.ggml_id, rows, in_features)
    assert file_bytes <= packed_bytes < file_bytes + num_panels(rows) * LINE
    assert packed_bytes <= 1.01 * file_bytes


def test_a_panel_that_is_not_full_counts_whole(kernels: KernelLibrary) -> None:
    sizes = [kernels.packed_bytes(Q4_0.ggml_id, rows, 64) for rows in (1, 15, 16, 17)]
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3] // 2 > 0


@pytest.mark.parametrize("ggml_id", [-1, 999, *(each.ggml_id for each in dtypes.ALL)])
def test_other_types_have_no_kernels(kernels: KernelLibrary, ggml_id: int) -> None:
    known = dtypes.BY_ID.get(ggml_id) in TYPES
    assert (kernels.packed_bytes(ggml_id, 256, 256) > 0) == known


@pytest.mark.parametrize(
    ("dtype", "rows", "in_features"),
    [(Q4_0, 0, 32), (Q4_0, -1, 32), (Q4_0, 4, 0), (Q4_0, 4, -32), (Q4_0, 4, 48), (Q4_K, 4, 32),
     (Q4_K, 4, 384), (Q6_K, 4, 255)],
)  # fmt: skip
def test_sizes_that_blocks_do_not_fill_have_no_kernels(
    kernels: KernelLibrary, dtype: DType, rows: int, in_features: int
) -> None:
    assert kernels.packed_bytes(dtype.ggml_id, rows, in_features) == 0
