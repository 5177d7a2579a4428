"""Log-probabilities of the model's own distribution."""

from __future__ import annotations

import math

import numpy as np

from powerserve.sampler.candidates import Floats, largest


def log_probabilities(
    logits: Floats, token_id: int, num_top: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the natural log-probability of `token_id` and the `num_top` likeliest (id, logprob).

    `logits` [vocab_size] are the model's, before grammar, bias, penalties and temperature: the
    numbers then tell about the model and not about the request, and sum to one.
    """
    peak = logits.max()
    shifted = logits - peak
    total = np.exp(shifted, out=shifted).sum(dtype=np.float64)
    log_total = float(peak) + math.log(total)
    top = largest(logits, num_top) if num_top else ()
    alternatives = tuple((int(i), float(logits[i]) - log_total) for i in top)
    return float(logits[token_id]) - log_total, alternatives
