"""The kernels for 64-bit ARM, as a bundle has them, on emulated processors of three generations."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from deploy.emulated_cpu import CPUS, QEMU
from error_bounds import assert_within
from kernel_reference import Linear, expected
from kernel_weights import TYPES, FloatArray, KernelWeight, filled_weight, random_weight
from powerserve.backend.ggml.kernels.library import Flag, LinearSpec
from powerserve.core.dtypes import Q4_K, Q6_K, Q8_0, DType
from powerserve.deploy.bundle.cross_kernels import build_kernels
from powerserve.deploy.bundle.target import find_target
from powerserve.deploy.bundle.toolchain import GCC_PREFIX, toolchain_for
from powerserve.storage.progress import SILENT

# What each generation adds to those before it.
INSTRUCTION_SETS = dict(zip(CPUS, ("neon", "neon-dotprod", "neon-i8mm"), strict=True))
DRIVER = Path(__file__).with_name("driver.cpp")
SYSTEM = Path("/usr") / GCC_PREFIX.rstrip("-")  # the cross compiler's C library
COLUMNS = (*range(1, 10), 17)
ODD_ROWS = 37  # the last panel is not full


@dataclass(frozen=True)
class Emulator:
    """Runs the driver on one kind of processor."""

    driver: Path
    cpu: str

    def call(self, *arguments: str | Path) -> str:
        """What the driver prints."""
        command = [QEMU, "-cpu", self.cpu, "-L", SYSTEM, self.driver, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def results(self, operations: list[Linear], folder: Path) -> list[FloatArray]:
        """The results [columns, out_features] with this processor's best instruction set."""
        (folder / "input").write_bytes(b"".join(map(_case, operations)))
        self.call(INSTRUCTION_SETS[self.cpu], folder / "input", folder / "output")
        numbers = np.fromfile(folder / "output", np.float32)
        shapes = [(len(each.x), each.out_features) for each in operations]
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        assert ends[-1] == len(numbers)
        parts = np.split(numbers, ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled driver; the first time, the library is compiled as well."""
    for tool in (f"{GCC_PREFIX}g++", QEMU):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    toolchain = toolchain_for(find_target("linux-aarch64"), None)
    library = build_kernels(toolchain, SILENT)
    target = tmp_path_factory.mktemp("driver") / "driver"
    headers = Path(__file__).parents[4] / "native" / "kernels"
    command = [toolchain.compiler, "-std=c++20", "-O1", "-I", headers, DRIVER, library]
    subprocess.run([*command, f"-Wl,-rpath,{library.parent}", "-o", target], check=True)
    return target


@pytest.fixture(params=CPUS)
def emulator(request: pytest.FixtureRequest, driver: Path) -> Emulator:
    return Emulator(driver, request.param)


def test_each_processor_gets_what_it_can_run(emulator: Emulator) -> None:
    newest_first = [*reversed(INSTRUCTION_SETS.values())]
    own = newest_first.index(INSTRUCTION_SETS[emulator.cpu])
    assert emulator.call().split() == newest_first[own:]


def test_every_type_shape_and_number_of_columns(emulator: Emulator, tmp_path: Path) -> None:
    check(emulator, [each for dtype in TYPES for each in _products(dtype)], tmp_path)


def test_norms_several_weights_gates_and_residuals(emulator: Emulator, tmp_path: Path) -> None:
    check(emulator, [each for columns in (1, 4, 9) for each in _layers(columns)], tmp_path)


def test_extreme_weights_and_activations(emulator: Emulator, tmp_path: Path) -> None:
    check(emulator, [each for dtype in TYPES for each in _extremes(dtype)], tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-42], ids=str)
def test_a_broken_column_stays_alone(emulator: Emulator, tmp_path: Path, value: float) -> None:
    whole, broken = [], []
    for columns in (4, 7):
        each = _layers(columns)[0]
        x = each.x.copy()
        x[2, 40:80] = value
        whole.append(each)
        broken.append(replace(each, x=x))
    results = emulator.results([*whole, *broken], tmp_path)
    for good, bad in zip(results[:2], results[2:], strict=True):
        np.testing.assert_array_equal(np.delete(bad, 2, axis=0), np.delete(good, 2, axis=0))


def check(emulator: Emulator, operations: list[Linear], folder: Path) -> None:
    """All results are within their bounds."""
    results = emulator.results(operations, folder)
    for operation, result in zip(operations, results, strict=True):
        assert_within(result, expected(operation, bfloat16=False), operation)


# ---- operations ----------------------------------------------------------------------------------


def _normal(*shape: int) -> FloatArray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def _products(dtype: DType) -> list[Linear]:
    rng = np.random.default_rng(dtype.ggml_id)
    smallest = random_weight(rng, dtype, 1, dtype.block_size)
    larger = random_weight(rng, dtype, ODD_ROWS, 3 * dtype.block_size)
    return [
        Linear(_normal(columns, weight.in_features), (weight,))
        for weight in (smallest, larger)
        for columns in COLUMNS
    ]


def _layers(columns: int) -> list[Linear]:
    """Gate and up, query and key and value, and what is added to the residual."""
    rng = np.random.default_rng(columns)
    x, norm, eps = _normal(columns, 512), _normal(512), 1e-6
    q, k, v = (random_weight(rng, dtype, 24, 512) for dtype in (Q4_K, Q6_K, Q8_0))
    biases = tuple(map(_normal, (24, 24, 24)))
    return [
        Linear(x, (q, k), norm, swiglu=True, eps=eps),
        Linear(x, (q, k, v), norm, biases, eps=eps),
        Linear(x, (v,), residual=_normal(columns, 24)),
    ]


def _extremes(dtype: DType) -> list[Linear]:
    """Scales, quants and activations at their ends, where sums of products are largest."""
    x = _normal(9, 512)
    x[0], x[1], x[2] = 1, -1, 0
    x[4, 100] = 1e25
    return [
        Linear(x[:columns], (filled_weight(dtype, 16, 512, half=half, scale=scale, quant=quant),))
        for columns in (2, 9)
        for half in (0.0, 2.0**-24, 65504.0)
        for scale in (0x80, 0xFF)
        for quant in (0x00, 0x80, 0x7F, 0xFF)
    ]


# ---- the driver's input --------------------------------------------------------------------------


def _case(operation: Linear) -> bytes:
    columns, in_features = operation.x.shape
    flags = Flag.NORM if operation.norm is not None else Flag(0)
    flags |= Flag.BIAS if operation.biases else Flag(0)
    flags |= Flag.RESIDUAL if operation.residual is not None else Flag(0)
    flags |= Flag.SWIGLU if operation.swiglu else Flag(0)
    spec = LinearSpec(flags, len(operation.weights), eps=operation.eps, in_features=in_features)
    for index, weight in enumerate(operation.weights):
        spec.types[index], spec.rows[index] = weight.dtype.ggml_id, weight.rows
    sources = [_floats(operation.x)]
    sources += [] if operation.norm is None else [_floats(operation.norm)]
    sources += [_weight(each) for each in operation.weights]
    sources += [_floats(each) for each in operation.biases]
    sources += [] if operation.residual is None else [_floats(operation.residual)]
    header = struct.pack("3q", columns, operation.out_features, len(sources))
    return bytes(spec) + header + b"".join(sources)


def _floats(array: FloatArray) -> bytes:
    rows, columns = np.atleast_2d(array).shape
    return struct.pack("4q", 0, columns, rows, array.nbytes) + array.tobytes()


def _weight(weight: KernelWeight) -> bytes:
    header = (weight.dtype.ggml_id, weight.in_features, weight.rows, weight.blocks.nbytes)
    return struct.pack("4q", *header) + weight.blocks.tobytes()
