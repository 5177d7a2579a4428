"""How fast memory can be read: bandwidth.cpp as a process that answers questions."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contestants import LineProcess

MEMORY = "memory"  # the process's name
SOURCE = Path(__file__).parent / "bandwidth.cpp"
FLAGS = ("-std=c++20", "-O3", "-march=native", "-pthread")


@contextmanager
def memory_reader(num_threads: int, most_bytes: int) -> Iterator[LineProcess]:
    """Compiled for this processor, and paused: answers numbers of bytes with seconds."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise SystemExit("a C++ compiler is needed; install g++ or clang")
    with tempfile.TemporaryDirectory() as scratch:
        program = f"{scratch}/bandwidth"
        subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", program], check=True)
        process = LineProcess(MEMORY, [program, str(num_threads), str(most_bytes)])
        process.pause()
        try:
            yield process
        finally:
            process.close()
