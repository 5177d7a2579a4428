"""Each operation of the reference backend against its formula, in loops over float64."""

from __future__ import annotations

import cmath
from dataclasses import replace
from math import exp, log, pi, sqrt

import numpy as np
import pytest

from powerserve.backend.reference.attention import ancestors, masked_attention
from powerserve.backend.reference.operations import linear, rms_norm, split_heads, swiglu
from powerserve.backend.reference.rope import apply_rope
from powerserve.core.config import RopeConfig, RopeScaling, RopeStyle

INTERLEAVED = RopeConfig(RopeStyle.INTERLEAVED, dim=8)
HALF_SPLIT = RopeConfig(RopeStyle.HALF_SPLIT, dim=8)
YARN = RopeConfig(
    RopeStyle.HALF_SPLIT, 64, scaling=RopeScaling.YARN, freq_scale=0.25, original_context=2048
)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def test_linear_adds_the_bias_to_each_row() -> None:
    x, weight, bias = random(3, 5), random(4, 5), random(4)
    expected = [
        [bias[o] + sum(float(x[t, i]) * float(weight[o, i]) for i in range(5)) for o in range(4)]
        for t in range(3)
    ]
    np.testing.assert_allclose(linear(x, weight, bias), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(linear(x, weight, None) + bias, expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_works_over_the_last_dimension_only() -> None:
    x, weight = random(2, 3, 4), random(4)
    got = rms_norm(x, weight, eps=0.1)
    for row, normed in zip(x.reshape(-1, 4), got.reshape(-1, 4), strict=True):
        rms = sqrt(sum(float(value) ** 2 for value in row) / 4 + 0.1)
        np.testing.assert_allclose(normed, row / rms * weight, rtol=1e-6)


def test_swiglu_holds_for_values_whose_exponential_overflows() -> None:
    gate = np.array([[-200, -20, -1, 0, 1, 200]], np.float32)
    up = np.array([[3, 3, 3, 3, 3, 3]], np.float32)
    expected = [[g / (1 + exp(-g)) * 3 for g in gate[0].astype(float)]]
    np.testing.assert_allclose(swiglu(gate, up), expected, rtol=1e-5, atol=1e-30)


def test_split_heads_keeps_the_features_of_a_head_together() -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(split_heads(x, 3)[1], [[6, 7], [8, 9], [10, 11]])


def rotate_by_complex_numbers(
    x: np.ndarray, positions: list[int], rope: RopeConfig, frequencies: list[float], length: float
) -> np.ndarray:
    """x [T, heads, d]: the pair (a, b) is the number a + bi, and turning it is a product."""
    expected = x.astype(np.float64)
    half = rope.dim // 2
    for token, position in enumerate(positions):
        for pair, frequency in enumerate(frequencies):
            interleaved = rope.style is RopeStyle.INTERLEAVED
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
            for head in range(x.shape[1]):
                number = complex(x[token, head, a], x[token, head, b])
                turned = number * length * cmath.exp(1j * position * frequency)
                expected[token, head, a], expected[token, head, b] = turned.real, turned.imag
    return expected


def original_frequencies(rope: RopeConfig) -> list[float]:
    return [rope.freq_base ** (-2 * pair / rope.dim) for pair in range(rope.dim // 2)]


@pytest.mark.parametrize("rope", [INTERLEAVED, HALF_SPLIT], ids=["interleaved", "half-split"])
@pytest.mark.parametrize("head_dim", [8, 12])
def test_rope_turns_pairs_and_leaves_other_dimensions(rope: RopeConfig, head_dim: int) -> None:
    x, positions = random(3, 2, head_dim), [0, 5, 4000]
    got = apply_rope(x, np.array(positions, np.int32), rope, None)
    expected = rotate_by_complex_numbers(x, positions, rope, original_frequencies(rope), 1)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


def test_rope_factors_divide_the_frequencies() -> None:
    x, factors = random(2, 1, 8), np.array([1, 2, 4, 8], np.float32)
    got = apply_rope(x, np.array([3, 70], np.int32), INTERLEAVED, factors)
    frequencies = [
        f / float(by) for f, by in zip(original_frequencies(INTERLEAVED), factors, strict=True)
    ]
    expected = rotate_by_complex_numbers(x, [3, 70], INTERLEAVED, frequencies, 1)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_linear_scaling_is_a_smaller_position() -> None:
    x = random(1, 2, 8)
    scaled = replace(HALF_SPLIT, scaling=RopeScaling.LINEAR, freq_scale=0.25)
    got = apply_rope(x, np.array([40], np.int32), scaled, None)
    expected = apply_rope(x, np.array([10], np.int32), HALF_SPLIT, None)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_without_scaling_the_scale_is_not_used() -> None:
    x, positions = random(1, 2, 8), np.array([40], np.int32)
    unused = replace(HALF_SPLIT, freq_scale=0.25)
    np.testing.assert_array_equal(
        apply_rope(x, positions, unused, None), apply_rope(x, positions, HALF_SPLIT, None)
    )


def yarn_frequencies(rope: RopeConfig) -> list[float]:
    """Pairs between `fast` and `slow` blend; before stays as it was, after is interpolated."""

    def pair_of(turns: float) -> float:
        # From turns = context · base^(-2 pair / dim) / 2π.
        return rope.dim / 2 * log(rope.original_context / (2 * pi * turns), rope.freq_base)

    fast, slow = int(pair_of(rope.beta_fast)), int(pair_of(rope.beta_slow)) + 1
    blended = []
    for pair, frequency in enumerate(original_frequencies(rope)):
        interpolation = min(1.0, max(0.0, (pair - fast) / (slow - fast)))
        blended.append(frequency * (1 - interpolation + interpolation * rope.freq_scale))
    assert blended[0] == 1
    assert blended[-1] == pytest.approx(original_frequencies(rope)[-1] / 4)
    return blended


@pytest.mark.parametrize("attn_factor", [1.0, 0.8])
def test_yarn_blends_frequencies_and_lengthens(attn_factor: float) -> None:
    rope = replace(YARN, attn_factor=attn_factor)
    x, positions = random(2, 2, 64), [7, 5000]
    got = apply_rope(x, np.array(positions, np.int32), rope, None)
    length = attn_factor * (1 + 0.1 * log(4))
    expected = rotate_by_complex_numbers(x, positions, rope, yarn_frequencies(rope), length)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_ancestors_of_a_tree() -> None:
    # 0 ── 1 ── 3      and a second root 4
    #   └─ 2
    seen = ancestors(np.array([-1, 0, 0, 1, -1], np.int32))
    assert [set(np.flatnonzero(row)) for row in seen] == [{0}, {0, 1}, {0, 2}, {0, 1, 3}, {4}]


def test_attention_of_grouped_heads_over_visible_cells() -> None:
    q, keys, values = random(3, 4, 8), random(5, 2, 8), random(5, 2, 8)[::-1]
    visible = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
    got = masked_attention(q, keys, values, visible, scale=0.3)
    for token, head in np.ndindex(3, 4):
        cells = np.flatnonzero(visible[token])
        scores = [
            exp(0.3 * float(q[token, head] @ keys[cell, head // 2])) for cell in cells
        ]  # two query heads share a key head
        expected = sum(s * values[c, head // 2] for s, c in zip(scores, cells, strict=True))
        np.testing.assert_allclose(got[token, head], expected / sum(scores), rtol=1e-5, atol=1e-6)
