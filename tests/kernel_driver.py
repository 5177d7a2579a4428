"""The kernels on an emulated processor: operations go to a program there, results come back."""

from __future__ import annotations

import ctypes
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.emulated_cpu import QEMU
from kernel_attention import Attention, attention_spec, masks_of
from kernel_reference import Linear
from kernel_store import NUM_CELLS, UNTOUCHED, Store, turns
from kernel_weights import FloatArray, KernelWeight
from powerserve.backend.ggml.kernels.library import Flag, LinearSpec, StoreSpec
from powerserve.deploy.bundle.toolchain import GCC_PREFIX

SOURCE = Path(__file__).parent / "backend" / "ggml" / "kernels" / "driver.cpp"
HEADERS = Path(__file__).parents[1] / "native" / "kernels"
SYSTEM = Path("/usr") / GCC_PREFIX.rstrip("-")  # the cross compiler's C library
TYPE_IDS = {"float32": 0, "float16": 1, "int64": 27}  # ggml's

Array = npt.NDArray[Any]
Operation = Linear | Store | Attention


class Kind(IntEnum):
    """The driver's operations."""

    LINEAR = 0
    STORE = 1
    ATTENTION = 2


@dataclass(frozen=True)
class Driver:
    """The program, linked to the kernels."""

    program: Path

    @classmethod
    def compiled(cls, compiler: str, kernels: Path, target: Path) -> Driver:
        """Compile it into the file `target`."""
        command = [compiler, "-std=c++20", "-O1", "-I", HEADERS, SOURCE, kernels]
        subprocess.run([*command, f"-Wl,-rpath,{kernels.parent}", "-o", target], check=True)
        return cls(target)

    def instruction_sets(self, cpu: str) -> list[str]:
        """Those that it finds on a processor (as qemu names it), best first."""
        return self._call(cpu).split()

    def run(
        self, cpu: str, instruction_set: str, operations: Sequence[Operation], folder: Path
    ) -> list[FloatArray]:
        """The numbers that each operation writes, one after the other."""
        (folder / "input").write_bytes(b"".join(map(_case, operations)))
        self._call(cpu, instruction_set, folder / "input", folder / "output")
        output = (folder / "output").read_bytes()
        results = []
        for operation in operations:
            size = 4 * _num_floats(operation)
            results.append(np.frombuffer(output[:size], np.float32))
            output = output[size:]
        assert not output
        return results

    def _call(self, cpu: str, *arguments: str | Path) -> str:
        command = [QEMU, "-cpu", cpu, "-L", SYSTEM, self.program, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _num_floats(operation: Operation) -> int:
    if isinstance(operation, Linear):
        return len(operation.x) * operation.out_features
    if isinstance(operation, Attention):
        return operation.q.size
    return operation.q.size + NUM_CELLS * operation.k[0].size  # two caches of float16


def _case(operation: Operation) -> bytes:
    if isinstance(operation, Linear):
        return _linear(operation)
    return _attention(operation) if isinstance(operation, Attention) else _store(operation)


def _linear(operation: Linear) -> bytes:
    flags = Flag.NORM if operation.norm is not None else Flag(0)
    flags |= Flag.BIAS if operation.biases else Flag(0)
    flags |= Flag.RESIDUAL if operation.residual is not None else Flag(0)
    flags |= Flag.SWIGLU if operation.swiglu else Flag(0)
    columns, in_features = operation.x.shape
    spec = LinearSpec(flags, len(operation.weights), eps=operation.eps, in_features=in_features)
    for index, weight in enumerate(operation.weights):
        spec.types[index], spec.rows[index] = weight.dtype.ggml_id, weight.rows
    sources: list[Array | KernelWeight] = [operation.x]
    sources += [] if operation.norm is None else [operation.norm]
    sources += [*operation.weights, *operation.biases]
    sources += [] if operation.residual is None else [operation.residual]
    return _encoded(Kind.LINEAR, (columns, operation.out_features), bytes(spec), sources)


def _store(operation: Store) -> bytes:
    spec = StoreSpec(2 * operation.angles.shape[1], operation.is_half_split)
    cells = np.array(operation.cells, np.int64)
    caches = [np.full((NUM_CELLS, operation.k[0].size), UNTOUCHED) for _ in "kv"]
    sources = [operation.q, operation.k, operation.v, turns(operation)[:, None], cells, *caches]
    return _encoded(Kind.STORE, operation.q.shape, bytes(spec), sources)


def _attention(operation: Attention) -> bytes:
    spec = attention_spec(operation)
    slices = ctypes.string_at(spec.slices, spec.num_slices * ctypes.sizeof(spec.slices.contents))
    caches = [each.reshape(len(each), -1) for each in (operation.keys, operation.values)]
    sources = [operation.q, *caches, masks_of(operation)]
    return _encoded(Kind.ATTENTION, operation.q.shape, bytes(spec) + slices, sources)


def _encoded(
    kind: Kind, shape: tuple[int, ...], spec: bytes, sources: Sequence[Array | KernelWeight]
) -> bytes:
    header = struct.pack("5q", kind, *_sizes(shape), len(sources))
    return header + spec + b"".join(map(_source, sources))


def _source(source: Array | KernelWeight) -> bytes:
    if isinstance(source, KernelWeight):
        sizes = _sizes((source.rows, source.in_features))
        header = struct.pack("5q", source.dtype.ggml_id, *sizes, source.blocks.nbytes)
        return header + source.blocks.tobytes()
    sizes = _sizes(source.shape)
    return struct.pack("5q", TYPE_IDS[str(source.dtype)], *sizes, source.nbytes) + source.tobytes()


def _sizes(shape: tuple[int, ...]) -> list[int]:
    """ggml's: the fastest dimension first."""
    return [*reversed(shape), 1, 1][:3]
