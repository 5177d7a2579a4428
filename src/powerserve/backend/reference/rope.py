"""Rotary position embedding with its scalings, as ggml defines them.

Angles are computed in float64, where ggml uses float32: the reference is the more exact one.
Sources: Su et al. 2021; YaRN: Peng et al. 2023, in the form of `rope_yarn` in ggml.
"""

from __future__ import annotations

from math import ceil, floor, log, pi

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.core.config import RopeConfig, RopeScaling, RopeStyle

Float64Array = npt.NDArray[np.float64]


def apply_rope(
    x: FloatArray, positions: Int32Array, rope: RopeConfig, factors: FloatArray | None
) -> FloatArray:
    """x [T, heads, d] with the first `rope.dim` dimensions of each head rotated."""
    first, second = _pair_indices(rope)
    cos, sin = (table[:, np.newaxis, :] for table in rope_tables(positions, rope, factors))
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., first] * sin + x[..., second] * cos
    return rotated


def rope_tables(
    positions: Int32Array, rope: RopeConfig, factors: FloatArray | None
) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine of every pair's angle at `positions` [T], times YaRN's: [T, dim / 2] each."""
    angles = positions[:, np.newaxis] * _frequencies(rope, factors)  # [T, dim / 2], radians
    magnitude = _magnitude(rope)
    cos = (np.cos(angles) * magnitude).astype(np.float32)
    sin = (np.sin(angles) * magnitude).astype(np.float32)
    return cos, sin


def _pair_indices(rope: RopeConfig) -> tuple[slice, slice]:
    """Which dimensions are the first and the second of each rotated pair."""
    if rope.style is RopeStyle.INTERLEAVED:
        return slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    return slice(0, rope.dim // 2), slice(rope.dim // 2, rope.dim)


def _frequencies(rope: RopeConfig, factors: FloatArray | None) -> Float64Array:
    """Radians per position of each pair [dim / 2], after scaling."""
    original = rope.freq_base ** (-np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    if factors is not None:
        original = original / factors
    if rope.scaling is RopeScaling.NONE:
        return original
    interpolated = rope.freq_scale * original
    if rope.scaling is RopeScaling.LINEAR:
        return interpolated
    kept = _kept_share(rope)
    return interpolated * (1 - kept) + original * kept


def _magnitude(rope: RopeConfig) -> float:
    """What rotated dimensions are multiplied with, which tempers attention under YaRN."""
    if rope.scaling is RopeScaling.YARN:
        return rope.attn_factor * (1 + 0.1 * log(1 / rope.freq_scale))
    return rope.attn_factor


def _kept_share(rope: RopeConfig) -> Float64Array:
    """YaRN: how much of each pair's original frequency stays [dim / 2], 0 … 1.

    Pairs that turn more than `beta_fast` times in the original context keep theirs, those that
    turn fewer than `beta_slow` times are interpolated, and between the two is a linear ramp.
    """
    low = max(0, floor(_pair_of_turns(rope, rope.beta_fast)))
    high = min(rope.dim - 1, ceil(_pair_of_turns(rope, rope.beta_slow)))
    ramp = (np.arange(rope.dim // 2) - low) / max(0.001, high - low)
    return 1 - np.clip(ramp, 0, 1)


def _pair_of_turns(rope: RopeConfig, turns: float) -> float:
    """The (fractional) pair that turns this many times in the original context."""
    turn_ratio = rope.original_context / (turns * 2 * pi)
    return rope.dim * log(turn_ratio) / (2 * log(rope.freq_base))
