"""Every quantised type is decoded to the same numbers as by ggml's own `to_float`."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from powerserve.backend.ggml.locate import library_file, library_folder
from powerserve.backend.reference.dequantise import dequantise
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import BackendError, UnsupportedModelError
from quantised import MemoryTensor, quantised_tensor

WEIGHT_TYPES = [dtypes.F16, dtypes.BF16, *(dtype for dtype in dtypes.ALL if dtype.is_quantised)]
# ggml's quantisers of the other types build search tables for seconds; random bytes cover those.
QUICKLY_QUANTISED = [dtype for dtype in WEIGHT_TYPES if not dtype.name.startswith(("IQ1", "IQ2"))]
NUM_ROWS, NUM_COLUMNS = 8, 512
TO_FLOAT = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)


class TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h"""

    _fields_ = (
        ("type_name", c_char_p),
        ("block_size", c_int64),
        ("interleaved_block_size", c_int64),
        ("type_size", c_size_t),
        ("is_quantised", c_bool),
        ("to_float", TO_FLOAT),
        ("from_float", c_void_p),
    )


@pytest.fixture(scope="module")
def ggml() -> Any:
    handle = ctypes.CDLL(str(library_file(library_folder(), "ggml-base")))
    handle.ggml_get_type_traits.restype = POINTER(TypeTraits)
    handle.ggml_get_type_traits.argtypes = [c_int]
    return handle


def dequantise_with_ggml(ggml: Any, tensor: MemoryTensor) -> npt.NDArray[np.float32]:
    traits = ggml.ggml_get_type_traits(tensor.dtype.ggml_id).contents
    assert traits.type_name.decode().lower() == tensor.dtype.name.lower()
    values = np.empty(tensor.shape, np.float32)
    traits.to_float(tensor.data.ctypes.data, values.ctypes.data, values.size)
    return values


@pytest.mark.parametrize("dtype", QUICKLY_QUANTISED, ids=str)
def test_quantised_values_decode_as_in_ggml(ggml: Any, dtype: DType) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(0, 0.1, (NUM_ROWS, NUM_COLUMNS)).astype(np.float32)
    values *= rng.uniform(0.1, 10, (NUM_ROWS, 1)).astype(np.float32)
    tensor = quantised_tensor(values, dtype)
    decoded = dequantise(tensor)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, dequantise_with_ggml(ggml, tensor), rtol=1e-6, atol=0)
    assert np.corrcoef(decoded.ravel(), values.ravel())[0, 1] > 0.6  # ternary types: 0.7


@pytest.mark.parametrize("dtype", WEIGHT_TYPES, ids=str)
def test_random_bytes_decode_as_in_ggml(ggml: Any, dtype: DType) -> None:
    """Reaches codes that quantising never makes; F16 scales may be infinite or not numbers."""
    rng = np.random.default_rng(6)
    size = dtype.size_bytes(NUM_ROWS * NUM_COLUMNS)
    data = rng.integers(0, 256, size, dtype=np.uint8)
    tensor = MemoryTensor((NUM_ROWS, NUM_COLUMNS), dtype, data)
    with np.errstate(all="ignore"):
        decoded = dequantise(tensor)
    expected = dequantise_with_ggml(ggml, tensor)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.5
    np.testing.assert_allclose(decoded[finite], expected[finite], rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", WEIGHT_TYPES, ids=str)
def test_block_geometry_is_that_of_ggml(ggml: Any, dtype: DType) -> None:
    traits = ggml.ggml_get_type_traits(dtype.ggml_id).contents
    assert (traits.block_size, traits.type_size) == (dtype.block_size, dtype.block_bytes)


def test_plain_types_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    values = np.array([[1.0, -2.5]], np.float32)
    tensor = MemoryTensor((1, 2), dtypes.F32, values.view(np.uint8).ravel())
    np.testing.assert_array_equal(dequantise(tensor), values)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    tensor = MemoryTensor((1, 32), dtypes.Q4_0, np.zeros(18, np.uint8))
    with pytest.raises(BackendError, match="pip install gguf"):
        dequantise(tensor)


def test_integers_are_not_weights() -> None:
    with pytest.raises(UnsupportedModelError, match="I32"):
        dequantise(MemoryTensor((1,), dtypes.I32, np.zeros(4, np.uint8)))
