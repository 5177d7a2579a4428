"""Every kernel computes what numpy does on dequantised weights with equally rounded activations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from error_bounds import Bounded, assert_within
from kernel_calls import Calls, Execution, each_instruction_set, run, uses_bfloat16
from kernel_reference import Linear, expected
from kernel_weights import (
    TYPES,
    FloatArray,
    KernelWeight,
    filled_weight,
    random_weight,
)
from powerserve.backend.ggml.kernels.library import MAX_WEIGHTS, KernelLibrary
from powerserve.core.dtypes import Q4_0, Q4_K, Q6_K, Q8_0, DType

MOST_COLUMNS = 33  # more than two tiles of 16, and than a group of 32
COLUMNS = (1, 2, 4, 5, 8, 9, 16, 17, MOST_COLUMNS)
ODD_ROWS = 37  # the last panel is not full


def normal(rng: np.random.Generator, *shape: int) -> FloatArray:
    """Numbers like activations."""
    return rng.standard_normal(shape).astype(np.float32)


def check(kernels: KernelLibrary, operation: Linear, calls: Calls, context: object = "") -> None:
    """All instruction sets give the expected result within its bound."""
    results: dict[bool, Bounded] = {}
    for name in each_instruction_set(kernels):
        bfloat16 = uses_bfloat16(kernels, len(operation.x))
        if bfloat16 not in results:
            results[bfloat16] = expected(operation, bfloat16=bfloat16)
        assert_within(run(kernels, operation, calls), results[bfloat16], (name, calls, context))


# ---- one weight --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_number_of_columns(kernels: KernelLibrary, dtype: DType) -> None:
    rng = np.random.default_rng(1)
    weight = random_weight(rng, dtype, ODD_ROWS, 512)
    operation = Linear(normal(rng, MOST_COLUMNS, 512), (weight,))
    results = {bfloat16: expected(operation, bfloat16=bfloat16) for bfloat16 in (False, True)}
    for name in each_instruction_set(kernels):
        for columns in range(1, MOST_COLUMNS + 1):
            wanted = results[uses_bfloat16(kernels, columns)].select(slice(columns))
            result = run(kernels, operation.first(columns), Calls(prepared=True))
            assert_within(result, wanted, (name, columns))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_shape(kernels: KernelLibrary, dtype: DType) -> None:
    rng = np.random.default_rng(2)
    for rows, num_blocks in [(1, 1), (15, 3), (16, 2), (17, 5), (48, 1), (100, 7)]:
        weight = random_weight(rng, dtype, rows, num_blocks * dtype.block_size)
        for columns in (1, 3, 7, 16, 70):
            operation = Linear(normal(rng, columns, weight.in_features), (weight,))
            check(kernels, operation, Calls(prepared=columns > 4), (rows, num_blocks))


@pytest.mark.parametrize("dtype", [Q4_K, Q6_K, Q8_0], ids=str)
def test_long_sums(kernels: KernelLibrary, dtype: DType) -> None:
    rng = np.random.default_rng(3)
    weights = tuple(random_weight(rng, dtype, 20, 8960) for _ in range(2))
    for columns in (1, 4, 20):
        for swiglu in (False, True):
            operation = Linear(normal(rng, columns, 8960), weights, swiglu=swiglu)
            check(kernels, operation, Calls(prepared=columns > 4, num_threads=2))


# ---- several weights, and what is done with products -------------------------------------------


@pytest.mark.parametrize("columns", COLUMNS)
def test_query_key_and_value_in_one(kernels: KernelLibrary, columns: int) -> None:
    """Of different types, as Q4_K_M files have it, and with biases, as Qwen2 has them."""
    rng = np.random.default_rng(4)
    weights = tuple(
        random_weight(rng, dtype, rows, 512) for dtype, rows in [(Q4_K, 50), (Q4_K, 10), (Q6_K, 21)]
    )
    biases = tuple(normal(rng, weight.rows) for weight in weights)
    operation = Linear(normal(rng, columns, 512), weights, biases=biases, norm=normal(rng, 512))
    for prepared in (False, True):
        check(kernels, operation, Calls(prepared=prepared, padding=5))


@pytest.mark.parametrize("columns", COLUMNS)
def test_a_residual_is_added(kernels: KernelLibrary, columns: int) -> None:
    rng = np.random.default_rng(5)
    weight = random_weight(rng, Q4_0, ODD_ROWS, 320)
    residual = 10 * normal(rng, columns, ODD_ROWS)
    operation = Linear(normal(rng, columns, 320), (weight,), residual=residual)
    check(kernels, operation, Calls(padding=16))


@pytest.mark.parametrize("columns", COLUMNS)
def test_gate_and_up(kernels: KernelLibrary, columns: int) -> None:
    rng = np.random.default_rng(6)
    weights = (random_weight(rng, Q8_0, 83, 256), random_weight(rng, Q6_K, 83, 256))
    operation = Linear(normal(rng, columns, 256), weights, swiglu=True, norm=normal(rng, 256))
    check(kernels, operation, Calls(prepared=columns > 4, num_threads=2))


def test_gates_of_any_size(kernels: KernelLibrary) -> None:
    """From -10⁵ to 10⁵, with most of them where silu bends; up is 1."""
    gates = np.sinh(np.linspace(-12.2, 12.2, 999)).astype(np.float32)
    x = np.zeros((len(gates), 32), np.float32)
    x[:, 0] = gates
    one = filled_weight(Q8_0, 1, 32, half=1.0, scale=0, quant=0)
    one.blocks[0, 0, 2] = 1  # the first feature
    zero = filled_weight(Q8_0, 1, 32, half=0.0, scale=0, quant=0)
    biases = (np.zeros(1, np.float32), np.ones(1, np.float32))
    for columns in (13, 111):
        for start in range(0, len(gates), columns):
            part = x[start : start + columns]
            check(kernels, Linear(part, (one, zero), biases=biases, swiglu=True), Calls())


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18, 1e30])
def test_the_norm_of_any_size(kernels: KernelLibrary, size: float) -> None:
    """Tiny activations are held down by eps; squares of huge ones do not overflow."""
    rng = np.random.default_rng(7)
    weight = random_weight(rng, Q4_K, ODD_ROWS, 512)
    for columns in (1, 5, 16):
        x = (normal(rng, columns, 512) * size).astype(np.float32)
        for eps in (1e-5, 1e-6):
            operation = Linear(x, (weight,), norm=normal(rng, 512), eps=eps)
            check(kernels, operation, Calls(prepared=columns > 4))


# ---- extreme numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_activations_of_any_size(kernels: KernelLibrary, size: float) -> None:
    rng = np.random.default_rng(8)
    for dtype in (Q4_0, Q6_K, Q8_0):
        weight = random_weight(rng, dtype, ODD_ROWS, 256)
        for columns in (1, 6, 16):
            x = (normal(rng, columns, 256) * size).astype(np.float32)
            check(kernels, Linear(x, (weight,)), Calls(prepared=columns > 4))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_zeros_and_outliers(kernels: KernelLibrary, dtype: DType) -> None:
    """Of a column, of a block; and one number that leaves no room for others of its block."""
    rng = np.random.default_rng(9)
    weight = random_weight(rng, dtype, ODD_ROWS, 512)
    x = normal(rng, 20, 512)
    x[0] = 0
    x[1, 64:96] = 0
    x[2, 100] = 1e30
    x[3, 511] = -1e30
    for columns in (4, 8, 20):
        check(kernels, Linear(x[:columns], (weight,)), Calls(prepared=columns > 4))


@pytest.mark.parametrize("half", [0.0, -0.0, 2.0**-24, -(2.0**-14), 65504.0])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_extreme_weights(kernels: KernelLibrary, dtype: DType, half: float) -> None:
    """Scales of zero, subnormal and the largest; numbers of scales and quants at their ends."""
    rng = np.random.default_rng(10)
    xs = {columns: normal(rng, columns, 512) for columns in (3, 8, 16)}
    for columns, x in xs.items():
        x[0] = 1  # all activations at their end, too
        x[1] = -1
        for quant in (0x00, 0x80, 0x7F, 0xFF):
            for scale in (0x80, 0xFF):
                weight = filled_weight(dtype, 18, 512, half=half, scale=scale, quant=quant)
                check(kernels, Linear(x, (weight,)), Calls(columns > 4), (quant, scale))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-42], ids=str)
@pytest.mark.parametrize("columns", [4, 8, 20])
def test_a_broken_column_stays_alone(kernels: KernelLibrary, columns: int, value: float) -> None:
    """Its result means nothing; the others do not change by a bit, and nothing else is written."""
    rng = np.random.default_rng(11)
    weights = tuple(random_weight(rng, dtype, 40, 256) for dtype in (Q6_K, Q8_0))
    whole = Linear(normal(rng, columns, 256), weights, norm=normal(rng, 256), swiglu=True)
    broken = Linear(whole.x.copy(), weights, norm=whole.norm, swiglu=True)
    broken.x[2, 5] = value
    broken.x[2, 64:128] = value
    others = np.arange(columns) != 2
    for name in each_instruction_set(kernels):
        for calls in (Calls(), Calls(prepared=True, num_threads=2)):
            result = run(kernels, broken, calls)
            np.testing.assert_array_equal(
                result[others], run(kernels, whole, calls)[others], err_msg=name
            )


def test_activations_that_are_too_small_count_as_nothing(kernels: KernelLibrary) -> None:
    """127 / x is infinite for them."""
    rng = np.random.default_rng(12)
    for dtype in TYPES:
        weight = random_weight(rng, dtype, ODD_ROWS, 256)
        for columns in (3, 6, 16):
            x = np.full((columns, 256), 1e-40, np.float32)
            for name in each_instruction_set(kernels):
                result = run(kernels, Linear(x, (weight,)), Calls(prepared=columns > 4))
                assert np.abs(result).max() < 1e-25, (name, dtype)


# ---- ways of execution -------------------------------------------------------------------------


@pytest.mark.parametrize("columns", COLUMNS)
def test_threads_and_repetitions_change_no_bit(kernels: KernelLibrary, columns: int) -> None:
    rng = np.random.default_rng(13)
    weights = tuple(random_weight(rng, dtype, 170, 256) for dtype in (Q4_K, Q6_K, Q4_0))
    operation = Linear(normal(rng, columns, 256), weights, norm=normal(rng, 256))
    for name in each_instruction_set(kernels):
        first = run(kernels, operation)
        for threads in (1, 2, 3, 4):
            for prepared in (False, True):
                execution = Execution(kernels, operation, Calls(prepared, threads))
                for _ in range(3):
                    np.testing.assert_array_equal(execution.run(), first, err_msg=name)


@pytest.mark.parametrize("offset", [0, 1, 7, 15])
def test_prepared_activations_may_lie_anywhere(kernels: KernelLibrary, offset: int) -> None:
    rng = np.random.default_rng(14)
    weight = random_weight(rng, Q4_0, 16, 96)
    for columns in (1, 8, 11, 16, 31):
        operation = Linear(normal(rng, columns, 96), (weight,))
        check(kernels, operation, Calls(prepared=True, offset=offset))


@st.composite
def operations(draw: st.DrawFn) -> Linear:
    """Any operation of some small weights."""
    seed, columns, num_blocks = (draw(st.integers(*ends)) for ends in [(0, 999), (1, 70), (1, 3)])
    rng = np.random.default_rng(seed)
    swiglu = draw(st.booleans())
    in_features = 256 * num_blocks
    weights = _weights(draw, rng, in_features, swiglu)
    biases = tuple(normal(rng, each.rows) for each in weights) if draw(st.booleans()) else ()
    norm = normal(rng, in_features) if draw(st.booleans()) else None
    operation = Linear(normal(rng, columns, in_features), weights, norm, biases, swiglu=swiglu)
    if not draw(st.booleans()):
        return operation
    residual = normal(rng, columns, operation.out_features)
    return Linear(operation.x, weights, norm, biases, residual, swiglu)


def _weights(
    draw: st.DrawFn, rng: np.random.Generator, in_features: int, swiglu: bool
) -> tuple[KernelWeight, ...]:
    count = 2 if swiglu else draw(st.integers(1, MAX_WEIGHTS))
    rows = [draw(st.integers(1, 70))] * count
    if not swiglu:
        rows = [draw(st.integers(1, 70)) for _ in range(count)]
    types = [draw(st.sampled_from(TYPES)) for _ in range(count)]
    return tuple(
        random_weight(rng, dtype, each, in_features)
        for dtype, each in zip(types, rows, strict=True)
    )


ways = st.builds(
    Calls,
    prepared=st.booleans(),
    num_threads=st.integers(1, 4),
    padding=st.integers(0, 20),
    offset=st.integers(0, 15),
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(operation=operations(), calls=ways)
def test_any_operation(kernels: KernelLibrary, operation: Linear, calls: Calls) -> None:
    check(kernels, operation, calls)
