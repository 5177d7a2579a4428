"""Load the ggml libraries in a folder, compute something small, and print what they are as JSON.

Run as a process of its own: `python -m powerserve.backend.ggml.probe FOLDER`.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

from powerserve.backend.ggml.library import STATUS_SUCCESS, GgmlLibrary, Tensor
from powerserve.core.errors import BackendError

F32 = 0  # enum ggml_type
LENGTH = 64  # elements: several of the widest vector registers
ROWS = 3


def main() -> int:
    """Probe the folder named on the command line; returns the exit status."""
    try:
        library = GgmlLibrary(Path(sys.argv[1]))
        check_arithmetic(library)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"version": library.version_text, "features": library.features()}))
    return 0


def check_arithmetic(library: GgmlLibrary) -> None:
    """Multiply a matrix of row numbers by a vector of ones on the CPU backend.

    Raises:
        BackendError: the backend fails or the product is wrong.
    """
    backend = library.backend_cpu_init()
    context = library.new_context(8, num_graph_nodes=8)
    matrix = library.new_tensor_2d(context, F32, LENGTH, ROWS)
    vector = library.new_tensor_1d(context, F32, LENGTH)
    product = library.mul_mat(context, matrix, vector)
    graph = library.new_graph_custom(context, 8, False)
    library.build_forward_expand(graph, product)
    buffer = library.backend_alloc_ctx_tensors_from_buft(context, library.backend_cpu_buffer_type())
    _write(library, matrix, [float(row) for row in range(ROWS) for _ in range(LENGTH)])
    _write(library, vector, [1.0] * LENGTH)
    if library.backend_graph_compute(backend, graph) != STATUS_SUCCESS:
        raise BackendError("ggml could not compute a small graph")
    found = _read(library, product, ROWS)
    if found != [float(row * LENGTH) for row in range(ROWS)]:
        raise BackendError(f"ggml computes wrongly: {found}")
    library.backend_buffer_free(buffer)
    library.free(context)
    library.backend_free(backend)


def _write(library: GgmlLibrary, tensor: int, values: list[float]) -> None:
    data = (ctypes.c_float * len(values))(*values)
    library.backend_tensor_set(tensor, data, 0, ctypes.sizeof(data))


def _read(library: GgmlLibrary, tensor: int, count: int) -> list[float]:
    address = Tensor.from_address(tensor).data
    return list((ctypes.c_float * count).from_address(address))


if __name__ == "__main__":
    sys.exit(main())
