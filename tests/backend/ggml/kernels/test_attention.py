"""Attention is that of numpy, for any sequences, heads and masks, with every instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from error_bounds import assert_within
from kernel_attention import Attention, AttentionExecution, Sequence, expected_attention
from kernel_calls import each_instruction_set, uses_bfloat16
from powerserve.backend.ggml.kernels.library import KernelLibrary

MANY = 512  # columns, for which tiles are used if there are any


def short_numbers(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float64]:
    """From -4 to 4, of few bits: bfloat16 holds them."""
    return rng.integers(-64, 65, shape) / 16


def causal(num_tokens: int, num_cells: int) -> npt.NDArray[np.bool_]:
    """The last tokens of a sequence."""
    return np.tri(num_tokens, num_cells, num_cells - num_tokens, dtype=np.bool_)


def attention(
    rng: np.random.Generator, *sequences: Sequence, heads: tuple[int, int] = (6, 2), dim: int = 64
) -> Attention:
    """Random numbers for (query heads, heads of keys and values) of a size."""
    num_tokens = sum(len(each.visible) for each in sequences)
    num_cells = max(each.first_cell + each.visible.shape[1] for each in sequences)
    keys, values = (short_numbers(rng, num_cells, heads[1], dim).astype(np.float16) for _ in "kv")
    q = short_numbers(rng, num_tokens, heads[0], dim).astype(np.float32)
    return Attention(q, keys, values, sequences)


def check(kernels: KernelLibrary, case: Attention, num_threads: int = 1) -> None:
    """All instruction sets give the expected result within its bound."""
    results = {bfloat16: expected_attention(case, bfloat16=bfloat16) for bfloat16 in (False, True)}
    for name in each_instruction_set(kernels):
        result = AttentionExecution(kernels, case, num_threads=num_threads).run()
        assert_within(result, results[uses_bfloat16(kernels, MANY)], name)


@pytest.mark.parametrize("dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(
    "heads", [(1, 1), (4, 4), (4, 2), (9, 3), (5, 1), (6, 1), (14, 2), (9, 1), (16, 1)], ids=str
)
def test_heads_of_any_number_and_size(
    kernels: KernelLibrary, heads: tuple[int, int], dim: int
) -> None:
    rng = np.random.default_rng(1)
    for num_tokens, num_cells in [(1, 77), (9, 70)]:
        mask = causal(num_tokens, num_cells)
        check(kernels, attention(rng, Sequence(mask), heads=heads, dim=dim))


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 5, 16, 17, 50])
def test_any_number_of_tokens_and_cells(kernels: KernelLibrary, num_tokens: int) -> None:
    """Many cells of few tokens are divided between threads."""
    rng = np.random.default_rng(2)
    for num_cells in (1, 31, 50, 63, 64, 65, 128, 511, 512, 1100, 2100):
        check(kernels, attention(rng, Sequence(causal(num_tokens, num_cells))), num_threads=2)


def test_sequences_of_a_step(kernels: KernelLibrary) -> None:
    """A prompt, a long and a short one being continued, and a tree of drafts."""
    rng = np.random.default_rng(3)
    tree = causal(4, 90)
    tree[2, 87] = tree[3, 86] = tree[3, 88] = False
    sequences = (
        Sequence(causal(40, 60), 10),
        Sequence(causal(1, 700), 70),
        Sequence(causal(1, 3), 0),
        Sequence(tree, 5),
    )
    for num_threads in (1, 3):
        check(kernels, attention(rng, *sequences), num_threads)


def test_a_token_that_sees_nothing_gets_nothing(kernels: KernelLibrary) -> None:
    rng = np.random.default_rng(4)
    for num_tokens, num_cells in [(2, 70), (3, 600), (20, 70)]:
        mask = causal(num_tokens, num_cells)
        mask[1] = False
        case = attention(rng, Sequence(mask))
        for name in each_instruction_set(kernels):
            result = AttentionExecution(kernels, case).run()
            assert not result[1].any(), name
            assert result[0].any(), name


@pytest.mark.parametrize("number", [-60000, np.inf, np.nan], ids=str)
@pytest.mark.parametrize("num_tokens", [1, 4, 32])
def test_hidden_cells_change_no_bit(kernels: KernelLibrary, num_tokens: int, number: float) -> None:
    rng = np.random.default_rng(5)
    mask = rng.random((num_tokens, 530)) < 0.1
    case = attention(rng, Sequence(mask))
    other = Attention(case.q, case.keys.copy(), case.values.copy(), case.sequences)
    unseen = ~mask.any(axis=0)
    assert unseen.any()
    other.keys[unseen] = other.values[unseen] = number
    for name in each_instruction_set(kernels):
        first, second = (AttentionExecution(kernels, each).run() for each in (case, other))
        np.testing.assert_array_equal(first, second, err_msg=name)


@pytest.mark.parametrize("num_tokens", [1, 4, 32])
def test_scores_of_any_size(kernels: KernelLibrary, num_tokens: int) -> None:
    """Large ones choose a cell, and those that came before it vanish; of zeros all count alike."""
    rng = np.random.default_rng(6)
    plain = attention(rng, Sequence(causal(num_tokens, 300)))
    for factor in (0.0, 2.0**-20, 2.0**8, 2.0**20):
        q = (plain.q * factor).astype(np.float32)
        check(kernels, Attention(q, plain.keys, plain.values, plain.sequences))


@pytest.mark.parametrize("num_tokens", [1, 4, 32])
def test_threads_and_repetitions_change_no_bit(kernels: KernelLibrary, num_tokens: int) -> None:
    rng = np.random.default_rng(7)
    sequences = (Sequence(causal(num_tokens, 600)), Sequence(causal(1, 900)))
    case = attention(rng, *sequences)
    for name in each_instruction_set(kernels):
        first = AttentionExecution(kernels, case).run()
        for num_threads in (1, 2, 3, 4):
            execution = AttentionExecution(kernels, case, num_threads=num_threads)
            for _ in range(3):
                np.testing.assert_array_equal(execution.run(), first, err_msg=name)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38], ids=str)
def test_a_broken_query_stays_alone(kernels: KernelLibrary, value: float) -> None:
    rng = np.random.default_rng(8)
    for num_tokens, num_cells in [(4, 600), (32, 100)]:
        case = attention(rng, Sequence(causal(num_tokens, num_cells)))
        q = case.q.copy()
        q[2, 1, 5] = value
        broken = Attention(q, case.keys, case.values, case.sequences)
        others = np.ones(q.shape[:2], bool)
        others[2, 1] = False
        for name in each_instruction_set(kernels):
            first, second = (AttentionExecution(kernels, each).run() for each in (case, broken))
            np.testing.assert_array_equal(first[others], second[others], err_msg=name)


def test_queries_may_lie_head_by_head(kernels: KernelLibrary) -> None:
    rng = np.random.default_rng(9)
    for num_tokens in (2, 20):
        case = attention(rng, Sequence(causal(num_tokens, 80)))
        q = np.ascontiguousarray(case.q.transpose(1, 0, 2)).transpose(1, 0, 2)
        assert q.strides != case.q.strides
        check(kernels, Attention(q, case.keys, case.values, case.sequences))


def test_which_heads_have_kernels(kernels: KernelLibrary) -> None:
    assert [dim for dim in range(1, 600) if kernels.can_attend(dim, 1)] == [*range(32, 257, 32)]
    assert kernels.can_attend(64, 64)
    assert not kernels.can_attend(64, 65)


@st.composite
def steps(draw: st.DrawFn) -> Attention:
    """Any sequences with any masks."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    sequences = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.sampled_from([1, 2, 4, 7, 30])), draw(st.integers(1, 600))
        mask = rng.random(shape) < draw(st.sampled_from([0.01, 0.5, 1.0]))
        sequences.append(Sequence(mask, draw(st.integers(0, 30))))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    dim = draw(st.sampled_from([32, 64]))
    return attention(rng, *sequences, heads=(kv_heads * group, kv_heads), dim=dim)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(case=steps(), num_threads=st.integers(1, 4))
def test_any_step(kernels: KernelLibrary, case: Attention, num_threads: int) -> None:
    check(kernels, case, num_threads)
