"""Load the ggml libraries in a folder and print what they are as JSON.

Run as a process of its own: `python -m powerserve.backend.ggml.probe FOLDER [--kernels]`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from powerserve.backend.ggml.cpu import check_cpu
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.core.errors import BackendError


def main(arguments: list[str]) -> int:
    """Probe the folder named by the first argument; returns the exit status."""
    folder = Path(arguments[0])
    try:
        library = GgmlLibrary(folder)
        check_cpu(library)
        if "--kernels" in arguments:
            from powerserve.backend.ggml.kernel_check import check_kernels

            check_kernels(folder)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"version": library.version_text, "features": library.features()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
