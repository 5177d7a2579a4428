"""The kernels for 64-bit ARM, as a bundle has them, on emulated processors of three generations."""

from __future__ import annotations

import shutil
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from deploy.emulated_cpu import CPUS, QEMU
from error_bounds import assert_within
from kernel_attention import Attention, Sequence, expected_attention
from kernel_driver import Driver, Operation
from kernel_reference import Linear
from kernel_reference import expected as expected_product
from kernel_store import NUM_CELLS, assert_stored, random_store
from kernel_weights import TYPES, FloatArray, filled_weight, random_weight
from powerserve.core.dtypes import Q4_K, Q6_K, Q8_0, DType
from powerserve.deploy.bundle.cross_kernels import build_kernels
from powerserve.deploy.bundle.target import find_target
from powerserve.deploy.bundle.toolchain import GCC_PREFIX, toolchain_for
from powerserve.storage.progress import SILENT

# What each generation adds to those before it.
INSTRUCTION_SETS = dict(zip(CPUS, ("neon", "neon-dotprod", "neon-i8mm"), strict=True))
COLUMNS = (*range(1, 10), 17)
ROWS = 24
ODD_ROWS = 37  # the last panel is not full


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """The compiled driver; the first time, the kernels are compiled as well."""
    for tool in (f"{GCC_PREFIX}g++", QEMU):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    toolchain = toolchain_for(find_target("linux-aarch64"), None)
    library = build_kernels(toolchain, SILENT)
    target = tmp_path_factory.mktemp("driver") / "driver"
    return Driver.compiled(toolchain.compiler, library, target)


@dataclass(frozen=True)
class Processor:
    """One that is emulated, with the best instruction set that it has."""

    driver: Driver
    cpu: str
    folder: Path

    def run(self, operations: Several[Operation]) -> list[FloatArray]:
        """What the operations write."""
        return self.driver.run(self.cpu, INSTRUCTION_SETS[self.cpu], operations, self.folder)


@pytest.fixture(params=CPUS)
def processor(request: pytest.FixtureRequest, driver: Driver, tmp_path: Path) -> Processor:
    return Processor(driver, request.param, tmp_path)


def test_each_processor_gets_what_it_can_run(processor: Processor) -> None:
    newest_first = [*reversed(INSTRUCTION_SETS.values())]
    own = newest_first.index(INSTRUCTION_SETS[processor.cpu])
    assert processor.driver.instruction_sets(processor.cpu) == newest_first[own:]


def test_every_type_shape_and_number_of_columns(processor: Processor) -> None:
    check(processor, [each for dtype in TYPES for each in products(dtype)])


def test_norms_several_weights_gates_and_residuals(processor: Processor) -> None:
    check(processor, [each for columns in (1, 4, 9) for each in layers(columns)])


def test_extreme_weights_and_activations(processor: Processor) -> None:
    check(processor, [each for dtype in TYPES for each in extremes(dtype)])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-42], ids=str)
def test_a_broken_column_stays_alone(processor: Processor, value: float) -> None:
    whole, broken = [], []
    for columns in (4, 7):
        operation = layers(columns)[0]
        x = operation.x.copy()
        x[2, 40:80] = value
        whole.append(operation)
        broken.append(replace(operation, x=x))
    results = [each.reshape(-1, ROWS) for each in processor.run([*whole, *broken])]
    for good, bad in zip(results[:2], results[2:], strict=True):
        np.testing.assert_array_equal(np.delete(bad, 2, axis=0), np.delete(good, 2, axis=0))


def test_keys_and_values_are_stored(processor: Processor) -> None:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (64, 64), (96, 32)]
    stores = [
        random_store(rng, tokens, dim=dim, rope_dim=rope_dim, is_half_split=is_half_split)
        for tokens in (1, 3)
        for dim, rope_dim in sizes
        for is_half_split in (False, True)
    ]
    for store, result in zip(stores, processor.run(stores), strict=True):
        q, caches = np.split(result, [store.q.size])
        keys, values = caches.view(np.float16).reshape(2, NUM_CELLS, *store.k.shape[1:])
        assert_stored(store, q.reshape(store.q.shape), keys, values, store)


def test_attention(processor: Processor) -> None:
    cases = [
        attention(heads, dim, tokens, cells)
        for heads in ((1, 1), (9, 3), (5, 1))
        for dim in (32, 64, 96)
        for tokens, cells in ((1, 1), (1, 530), (7, 70))
    ]
    for case, result in zip(cases, processor.run(cases), strict=True):
        expected = expected_attention(case, bfloat16=False)
        assert_within(result.reshape(case.q.shape), expected, case)


def check(processor: Processor, operations: list[Linear]) -> None:
    """All results are within their bounds."""
    results = processor.run(operations)
    for operation, result in zip(operations, results, strict=True):
        columns = result.reshape(-1, operation.out_features)
        assert_within(columns, expected_product(operation, bfloat16=False), operation)


# ---- operations ----------------------------------------------------------------------------------


def normal(*shape: int) -> FloatArray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def products(dtype: DType) -> list[Linear]:
    rng = np.random.default_rng(dtype.ggml_id)
    smallest = random_weight(rng, dtype, 1, dtype.block_size)
    larger = random_weight(rng, dtype, ODD_ROWS, 3 * dtype.block_size)
    return [
        Linear(normal(columns, weight.in_features), (weight,))
        for weight in (smallest, larger)
        for columns in COLUMNS
    ]


def layers(columns: int) -> list[Linear]:
    """Gate and up, query and key and value, and what is added to the residual."""
    rng = np.random.default_rng(columns)
    x, norm, eps = normal(columns, 512), normal(512), 1e-6
    q, k, v = (random_weight(rng, dtype, ROWS, 512) for dtype in (Q4_K, Q6_K, Q8_0))
    biases = tuple(map(normal, (ROWS, ROWS, ROWS)))
    return [
        Linear(x, (q, k), norm, swiglu=True, eps=eps),
        Linear(x, (q, k, v), norm, biases, eps=eps),
        Linear(x, (v,), residual=normal(columns, ROWS)),
    ]


def extremes(dtype: DType) -> list[Linear]:
    """Scales, quants and activations at their ends, where sums of products are largest."""
    x = normal(9, 512)
    x[0], x[1], x[2] = 1, -1, 0
    x[4, 100] = 1e25
    return [
        Linear(x[:columns], (filled_weight(dtype, 16, 512, half=half, scale=scale, quant=quant),))
        for columns in (2, 9)
        for half in (0.0, 2.0**-24, 65504.0)
        for scale in (0x80, 0xFF)
        for quant in (0x00, 0x80, 0x7F, 0xFF)
    ]


def attention(heads: tuple[int, int], dim: int, num_tokens: int, num_cells: int) -> Attention:
    """The last tokens of a sequence, after 5 cells of another."""
    rng = np.random.default_rng(num_cells)
    q = rng.integers(-64, 65, (num_tokens, heads[0], dim)) / 16  # of few bits
    keys, values = rng.integers(-64, 65, (2, 5 + num_cells, heads[1], dim)) / 16
    visible = np.tri(num_tokens, num_cells, num_cells - num_tokens, dtype=np.bool_)
    caches = keys.astype(np.float16), values.astype(np.float16)
    return Attention(q.astype(np.float32), *caches, (Sequence(visible, 5),))
