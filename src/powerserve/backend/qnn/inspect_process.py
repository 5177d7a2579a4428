"""Describe a context binary: `python -m powerserve.backend.qnn.inspect_process LIBRARY BINARY`.

Prints JSON: the fields of `inspect.BinaryInfo`, or `error`.
"""

from __future__ import annotations

import json
import os
import sys
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

from powerserve.backend.qnn.qnn_api import describe_binary
from powerserve.core.errors import BackendError


def main() -> int:
    """Print the description, undisturbed by what the library prints."""
    library, path = sys.argv[1:]
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with answer_file:
        json.dump(_answer(library, Path(path)), answer_file)
    return 0


def _answer(library: str, path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size == 0:
            return {"error": "it is empty"}
        with path.open("rb") as file:
            return describe_binary(library, mmap(file.fileno(), 0, access=ACCESS_COPY))
    except OSError as error:
        return {"error": f"it cannot be read: {error.strerror}"}
    except BackendError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    sys.exit(main())
