"""The sampling chain again, in plain Python with full sorts: what the fast one is compared with."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from powerserve.sampler import SamplingParams


class NearTieError(Exception):
    """The case is decided by rounding, so that comparing implementations proves nothing."""


def penalise(
    logits: Sequence[float], tokens: Sequence[int], params: SamplingParams, newline_id: int | None
) -> list[float]:
    """Apply the penalties of `params` to all logits, after the formulas of llama.cpp."""
    last_n = params.penalty_last_n
    window = list(tokens) if last_n < 0 else list(tokens)[max(0, len(tokens) - last_n) :]
    result = list(logits)
    for token_id, count in Counter(window).items():
        if token_id == newline_id and not params.penalize_nl:
            continue
        logit = result[token_id]
        logit = logit * params.repeat_penalty if logit <= 0 else logit / params.repeat_penalty
        result[token_id] = (
            logit - count * params.frequency_penalty - (count > 0) * params.presence_penalty
        )
    return result


def distribution(
    logits: Sequence[float], params: SamplingParams, *, rounding: float = 0
) -> dict[int, float]:
    """Return the probability of every token that can still be drawn. XTC always strikes.

    Two right answers may differ where a value meets its bound. Raises NearTieError if they are
    closer than `rounding`.
    """
    if params.temperature == 0 or params.top_k == 1:
        return {max(range(len(logits)), key=lambda i: (logits[i], -i)): 1.0}
    left = {i: logit for i, logit in enumerate(logits) if logit > -math.inf}
    for stage in params.stages:
        left = _STAGES[stage](left, params, rounding)
    return softmax(left)


def softmax(logits: dict[int, float]) -> dict[int, float]:
    peak = max(logits.values())
    weights = {i: math.exp(logit - peak) for i, logit in logits.items()}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


def _top_k(left: dict[int, float], params: SamplingParams, rounding: float) -> dict[int, float]:
    return dict(_by_logit(left)[: params.top_k or None])


def _top_p(left: dict[int, float], params: SamplingParams, rounding: float) -> dict[int, float]:
    order = [i for i, _ in _by_logit(left)]
    return _until(left, order, params.top_p, params.min_keep, rounding)


def _typical_p(left: dict[int, float], params: SamplingParams, rounding: float) -> dict[int, float]:
    probabilities = softmax(left)
    possible = {i: p for i, p in probabilities.items() if p > 0}
    entropy = -math.fsum(p * math.log(p) for p in possible.values())
    oddity = {i: abs(-math.log(p) - entropy) for i, p in possible.items()}
    order = sorted(possible, key=lambda i: (oddity[i], i))
    if params.typical_p < 1:
        for a, b in itertools.pairwise(order):
            if abs(oddity[a] - oddity[b]) < rounding and left[a] != left[b]:
                raise NearTieError
    return _until(left, order, params.typical_p, params.min_keep, rounding)


def _min_p(left: dict[int, float], params: SamplingParams, rounding: float) -> dict[int, float]:
    if params.min_p == 0:
        return left
    bound = max(left.values()) + math.log(params.min_p)
    _refuse_near(left.values(), bound, rounding)
    kept = {i: logit for i, logit in left.items() if logit >= bound}
    return kept if len(kept) >= params.min_keep else dict(_by_logit(left)[: params.min_keep])


def _xtc(left: dict[int, float], params: SamplingParams, rounding: float) -> dict[int, float]:
    if params.xtc_probability == 0:
        return left
    probabilities = softmax(left)
    _refuse_near(probabilities.values(), params.xtc_threshold, rounding)
    reaching = [i for i in left if probabilities[i] >= params.xtc_threshold]
    if len(reaching) < 2 or len(left) - (len(reaching) - 1) < params.min_keep:
        return left
    survivor = min(reaching, key=lambda i: (left[i], i))
    if rounding and [left[i] for i in reaching].count(left[survivor]) > 1:
        raise NearTieError  # either of the equal ones may stay
    return {i: logit for i, logit in left.items() if i == survivor or i not in reaching}


def _temperature(
    left: dict[int, float], params: SamplingParams, rounding: float
) -> dict[int, float]:
    return {i: logit / params.temperature for i, logit in left.items()}


def _until(
    left: dict[int, float], order: list[int], bound: float, min_keep: int, rounding: float
) -> dict[int, float]:
    """Keep the tokens of `order` until their probabilities reach `bound`."""
    if bound == 1:
        return left
    probabilities = softmax(left)
    kept: list[int] = []
    cumulative = 0.0
    for token_id in order:
        if cumulative >= bound and len(kept) >= min_keep:
            break
        cumulative += probabilities[token_id]
        kept.append(token_id)
        if abs(cumulative - bound) < rounding:
            raise NearTieError
    return {i: left[i] for i in kept}


def _by_logit(left: dict[int, float]) -> list[tuple[int, float]]:
    return sorted(left.items(), key=lambda item: (-item[1], item[0]))


def _refuse_near(values: Iterable[float], bound: float, rounding: float) -> None:
    if any(abs(value - bound) < rounding for value in values):
        raise NearTieError


_STAGES = {
    "top_k": _top_k,
    "typical_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "xtc": _xtc,
    "temperature": _temperature,
}
