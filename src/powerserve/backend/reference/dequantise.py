"""Any tensor of a model file as float32."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import FloatArray, WeightTensor
from powerserve.core.dtypes import BF16, F16, F32
from powerserve.core.errors import BackendError, UnsupportedModelError


def dequantise(tensor: WeightTensor) -> FloatArray:
    """The tensor's elements in its shape.

    Quantised types are decoded by the `gguf` package, which is ggml's own Python library and
    covers every type that ggml multiplies; plain types need no package.

    Raises:
        BackendError: the tensor is quantised and `gguf` is not installed.
        UnsupportedModelError: the type is not one of weights (an integer type, for instance).
    """
    if tensor.dtype.is_quantised:
        return _dequantise_blocks(tensor)
    if tensor.dtype == F32:
        values = tensor.data.view(np.float32)
    elif tensor.dtype == F16:
        values = tensor.data.view(np.float16).astype(np.float32)
    elif tensor.dtype == BF16:  # the upper half of a float32
        values = (tensor.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        raise UnsupportedModelError(f"a tensor of type {tensor.dtype} cannot be multiplied")
    return values.reshape(tensor.shape)


def _dequantise_blocks(tensor: WeightTensor) -> FloatArray:
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise BackendError(
            f"the reference backend needs the package “gguf” to read {tensor.dtype} weights; "
            "install it with: pip install gguf"
        ) from None
    row_bytes = tensor.dtype.size_bytes(tensor.shape[-1])
    blocks = tensor.data.reshape(*tensor.shape[:-1], row_bytes)
    values = dequantize(blocks, GGMLQuantizationType(tensor.dtype.ggml_id))
    return values.astype(np.float32, copy=False)
