"""Instructions of our kernels by the weights they read: what they can reach at best.

    python instructions.py [LIBRARY] [--columns 1,4,16] > instructions.md

Counts a product of a matrix with so many columns, on one thread, for every instruction set that
this processor has. See README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from ctypes import addressof
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flags import counts
from rounds import say
from single_step import count_instructions

from powerserve.backend.ggml.kernels.bare_tensors import LINE, aligned_bytes, bare_tensor
from powerserve.backend.ggml.kernels.library import Flag, KernelLibrary, LinearSpec
from powerserve.backend.ggml.kernels.locate import kernel_library
from powerserve.cli.markdown import markdown_table
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import PowerServeError

TYPES = (dtypes.Q4_0, dtypes.Q4_K, dtypes.Q6_K, dtypes.Q8_0)
IN_FEATURES = 512
ROWS = 32  # two panels, as tiles want them


class Product:
    """A matrix of zeros times columns of zeros: numbers do not change the instructions.

    Small, because each instruction takes microseconds to count. The activations are prepared
    beforehand where ggml's graph would have it so.
    """

    def __init__(self, kernels: KernelLibrary, dtype: DType, rows: int, columns: int) -> None:
        self._kernels = kernels
        self.packed_bytes = kernels.packed_size(dtype, (rows, IN_FEATURES))
        self._spec = LinearSpec(num_weights=1, in_features=IN_FEATURES)
        self._spec.types[0], self._spec.rows[0] = dtype.ggml_id, rows
        arrays: list[npt.NDArray[Any]] = [
            self._activations(columns),
            aligned_bytes(self.packed_bytes),
            np.zeros((columns, rows), np.float32),
        ]
        self._arrays = arrays  # the tensors' memory
        self._sources = [bare_tensor(array) for array in arrays[:2]]
        self._target = bare_tensor(arrays[2], *self._sources)

    def __call__(self) -> None:
        """Multiply, on this thread."""
        self._kernels.op_linear(addressof(self._target), 0, 1, addressof(self._spec))

    def _activations(self, columns: int) -> npt.NDArray[Any]:
        if columns <= self._kernels.max_unprepared():
            return np.zeros((columns, IN_FEATURES), np.float32)
        self._spec.flags = int(Flag.PREPARED)
        return aligned_bytes(self._kernels.prepared_bytes(IN_FEATURES, columns))


def main() -> None:
    """Print a table for every instruction set."""
    arguments = parse_arguments()
    try:
        print_tables(open_kernels(arguments.library), arguments.columns)
    except PowerServeError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "library", nargs="?", type=Path, help="default: what `powerserve build-native` made"
    )
    parser.add_argument(
        "--columns",
        type=counts,
        default=(1, 4, 16),
        help="numbers of activation columns; default: 1,4,16",
    )
    if sys.platform != "linux":
        parser.error("instructions are counted with Linux's ptrace")
    return parser.parse_args()


def open_kernels(path: Path | None) -> KernelLibrary:
    """The library to look at; exits if there is none."""
    path = path or kernel_library()
    if path is None:
        raise SystemExit("there are no kernels; make them with `powerserve build-native`")
    return KernelLibrary(path)


def print_tables(kernels: KernelLibrary, columns: Sequence[int]) -> None:
    """Instructions for each 64 bytes of weights."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # a step wakes two processes in turn
    print(f"# Instructions for each {LINE} bytes of packed weights\n")
    for name in kernels.instruction_sets:
        kernels.use(name)
        print(markdown_table(_rows(kernels, columns)) + "\n", flush=True)


def _rows(kernels: KernelLibrary, columns: Sequence[int]) -> Iterator[list[str]]:
    yield [f"{kernels.instruction_set}, columns:", *map(str, columns)]
    for dtype in TYPES:
        say(f"{kernels.instruction_set}, {dtype}\n")
        yield [str(dtype), *(f"{_per_line(kernels, dtype, each):.1f}" for each in columns)]


def _per_line(kernels: KernelLibrary, dtype: DType, columns: int) -> float:
    """What more rows cost more: the call itself and what is done with the columns fall away."""
    small, large = (Product(kernels, dtype, rows, columns) for rows in (ROWS, 2 * ROWS))
    more = count_instructions(large) - count_instructions(small)
    return more / (large.packed_bytes - small.packed_bytes) * LINE


if __name__ == "__main__":
    main()
