"""Runs on the device: multiplies the matrices in a file and writes the products to another.

    python3 device_products.py INPUT.npz OUTPUT.npz

The input holds `table` and, for each case, `NAME` with the bytes of a weight whose type is NAME up
to the first "/" and `NAME/batch` tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from powerserve.backend.ggml import kernel_check, locate, single_product
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.core import dtypes

inputs = np.load(sys.argv[1])
folder = locate.library_folder()
backend = GgmlBackend(GgmlOptions(num_threads=1), folder)  # emulated threads spin
by_name = {dtype.name: dtype for dtype in dtypes.ALL}
shape = (kernel_check.NUM_OUT, kernel_check.NUM_IN)
products = {
    f"{name}/{num_tokens}": kernel_check.product(
        backend,
        inputs["table"],
        single_product.RawTensor(shape, by_name[name], inputs[name]),
        num_tokens,
    )
    for name in inputs.files
    if name != "table"
    for num_tokens in kernel_check.BATCHES
}
np.savez(sys.argv[2], **products)
print(Path(folder).name)
