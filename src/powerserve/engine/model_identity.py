"""Whether two loaded models would write the same into a KV cell."""

from __future__ import annotations

import hashlib

from powerserve.core.dtypes import DType
from powerserve.engine.model_files import ModelFiles

_SAMPLE_BYTES = 4096  # of each tensor: a page


def cells_identity(files: ModelFiles, backend: str, kv_dtype: DType) -> bytes:
    """32 bytes that differ for models, for backends (each has its own layout) and for cache types.

    Of the weights, names, types, shapes and a page of each tensor count: enough to tell another
    fine-tune or quantisation, and milliseconds where hashing all would take seconds.
    """
    digest = hashlib.sha256(repr((files.config, backend, kv_dtype.name)).encode())
    for name, tensor in sorted(files.weights.tensors.items()):
        digest.update(repr((name, tensor.dtype.name, tensor.shape)).encode())
        digest.update(tensor.data[:_SAMPLE_BYTES].tobytes())
    return digest.digest()
