"""The filters of the sampling chain: pure functions from candidates to candidates.

A filter that has nothing before it sees the whole vocabulary, and still never sorts it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from powerserve.sampler.candidates import Candidates, Floats, largest
from powerserve.sampler.params import SamplingParams

Stage = Callable[[Candidates], Candidates]

_FIRST_GUESS = 512  # candidates that nearly always hold the mass top_p asks for
_GROWTH = 8


def build_stages(params: SamplingParams, *, with_xtc: bool) -> tuple[Stage, ...]:
    """Return the filters that `params` switches on, in the order of `params.stages`.

    `with_xtc` includes XTC, which applies only to some tokens, by chance.
    """
    min_keep = max(1, params.min_keep)
    active: dict[str, Stage] = {}
    if params.top_k > 0:
        active["top_k"] = partial(top_k, k=params.top_k)
    if params.typical_p < 1:
        active["typical_p"] = partial(typical_p, p=params.typical_p, min_keep=min_keep)
    if params.top_p < 1:
        active["top_p"] = partial(top_p, p=params.top_p, min_keep=min_keep)
    if params.min_p > 0:
        active["min_p"] = partial(min_p, p=params.min_p, min_keep=min_keep)
    if with_xtc:
        active["xtc"] = partial(xtc, threshold=params.xtc_threshold, min_keep=min_keep)
    if params.temperature != 1:
        active["temperature"] = partial(temperature, value=params.temperature)
    return tuple(active[name] for name in params.stages if name in active)


def top_k(candidates: Candidates, k: int) -> Candidates:
    """Keep the `k` most likely candidates (Fan et al. 2018); equal logits: the lowest ids."""
    return candidates if k >= len(candidates) else candidates.best(k)


def top_p(candidates: Candidates, p: float, min_keep: int = 1) -> Candidates:
    """Keep the fewest candidates whose probabilities reach `p` (Holtzman et al. 2019)."""
    weights = candidates.weights()
    if candidates.descending:
        return candidates.best(_prefix_length(weights, p * _total(weights), min_keep))
    kept = _nucleus(candidates.logits, weights, p, min_keep)
    return candidates.pick(kept, descending=True)


def typical_p(candidates: Candidates, p: float, min_keep: int = 1) -> Candidates:
    """Keep the candidates whose surprise is closest to the expected one, until they reach `p`.

    Source: Meister et al. 2022, “Locally Typical Sampling”.
    """
    weights = candidates.weights()
    total = _total(weights)
    # With s = logit - peak and Z = sum(exp(s)): surprise = log Z - s, entropy = log Z - E[s].
    shifted = candidates.logits - candidates.peak()
    possible = np.maximum(shifted, np.finfo(np.float32).min)  # 0 · -inf would be NaN
    expected = float((weights * possible).sum(dtype=np.float64)) / total
    closeness = -np.abs(shifted - np.float32(expected))
    return candidates.pick(_nucleus(closeness, weights, p, min_keep), descending=False)


def min_p(candidates: Candidates, p: float, min_keep: int = 1) -> Candidates:
    """Keep the candidates at least `p` times as likely as the best (Nguyen et al. 2024)."""
    threshold = candidates.peak() + np.float32(math.log(p))
    kept = np.flatnonzero(candidates.logits >= threshold)
    if len(kept) < min_keep:
        return candidates.best(min_keep)
    return candidates.pick(kept, descending=candidates.descending)


def xtc(candidates: Candidates, threshold: float, min_keep: int = 1) -> Candidates:
    """Exclude top choices: of the candidates that reach `threshold`, keep only the least likely.

    Source: llama.cpp, `llama_sampler_xtc`; the caller tosses the coin.
    """
    weights = candidates.weights()
    reaching = np.flatnonzero(weights >= threshold * _total(weights))
    num_possible = int(np.count_nonzero(candidates.logits > -np.inf))
    if len(reaching) < 2 or num_possible - len(reaching) + 1 < min_keep:
        return candidates
    kept = np.ones(len(candidates), dtype=np.bool_)
    kept[reaching] = False
    kept[reaching[candidates.logits[reaching].argmin()]] = True
    return candidates.pick(np.flatnonzero(kept), descending=candidates.descending)


def temperature(candidates: Candidates, value: float) -> Candidates:
    """Divide the logits by the temperature `value` > 0, after moving the highest to 0."""
    shifted = candidates.logits - candidates.peak()
    # A tiny temperature sends the losers to -inf, which is right; rounded to 0 it would give NaN.
    limits = np.finfo(np.float32)
    divisor = np.float32(min(max(value, float(limits.tiny)), float(limits.max)))
    with np.errstate(over="ignore"):
        np.divide(shifted, divisor, out=shifted)
    return Candidates(candidates.ids, shifted, candidates.descending)


def _nucleus(keys: Floats, weights: Floats, p: float, min_keep: int) -> NDArray[np.intp]:
    """Find the largest `keys` whose `weights` reach the share `p`: positions by falling key.

    Sorts only as many as are needed: the few best first, more if their mass does not suffice.
    """
    mass = p * _total(weights)
    count = max(_FIRST_GUESS, min_keep)
    while True:
        positions = largest(keys, count)
        found = weights[positions]
        is_everything = len(positions) < count or count >= len(keys)
        if is_everything or _total(found) >= mass:
            return positions[: _prefix_length(found, mass, min_keep)]
        count *= _GROWTH


def _prefix_length(weights: Floats, mass: float, min_keep: int) -> int:
    """Count the leading weights that are needed to reach `mass`, at least `min_keep`."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    return max(int(np.searchsorted(cumulative, mass)) + 1, min_keep)


def _total(weights: Floats) -> float:
    return float(weights.sum(dtype=np.float64))
