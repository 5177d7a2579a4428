"""Load a library of kernels and print the instruction sets that it serves here as JSON.

Run as a process of its own: `python -m powerserve.backend.ggml.kernels.probe LIBRARY [--check]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.core.errors import BackendError


def main(arguments: list[str]) -> int:
    """Probe the library named by the first argument; returns the exit status."""
    try:
        library = KernelLibrary(Path(arguments[0]))
        if "--check" in arguments:
            from powerserve.backend.ggml.kernels.check_attention import check_attention
            from powerserve.backend.ggml.kernels.check_products import check_products
            from powerserve.backend.ggml.kernels.check_storing import check_storing

            check_products(library)
            check_storing(library)
            check_attention(library)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(library.instruction_sets))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
