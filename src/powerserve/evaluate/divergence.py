"""How far a model's predictions are from those of another, token by token.

The other, the base, is usually the model before it was quantised. The figures are those of
llama.cpp's perplexity tool: KL divergence of the predicted distributions, change of the probability
of the token that came, agreement about the likeliest token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import sqrt

import numpy as np

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.evaluate.estimate import Estimate, FloatVector, mean_covariance, mean_of

ROWS_AT_ONCE = 16  # of the vocabulary's size, so that temporary arrays stay small


@dataclass(frozen=True, slots=True)
class Comparison:
    """Figures of each token [n] under both models."""

    nll: FloatVector
    base_nll: FloatVector
    divergence: FloatVector  # KL(base ‖ model), nats
    same_best: FloatVector  # 1 where both find the same token likeliest, else 0

    @property
    def num_tokens(self) -> int:
        """Predictions that were compared."""
        return len(self.nll)

    @property
    def perplexity(self) -> Estimate:
        """That of the model."""
        return mean_of(self.nll).exponential()

    @property
    def base_perplexity(self) -> Estimate:
        """That of the base."""
        return mean_of(self.base_nll).exponential()

    @property
    def log_ratio(self) -> Estimate:
        """ln(perplexity / base_perplexity); most of the chance in them cancels out."""
        return mean_of(self.nll - self.base_nll)

    @property
    def difference(self) -> Estimate:
        """perplexity - base_perplexity."""
        own, base = self.perplexity, self.base_perplexity
        shared = own.value * base.value * mean_covariance(self.nll, self.base_nll)
        variance = own.error**2 + base.error**2 - 2 * shared
        return Estimate(own.value - base.value, sqrt(max(variance, 0.0)))

    @property
    def correlation(self) -> float:
        """Of the NLL of both models."""
        spread = float(self.nll.std() * self.base_nll.std())
        return float(np.cov(self.nll, self.base_nll, ddof=0)[0, 1]) / spread if spread else 1.0

    @property
    def probability_change(self) -> FloatVector:
        """By how much the model finds the token that came likelier than the base does, [n]."""
        return np.exp(-self.nll) - np.exp(-self.base_nll)

    @property
    def agreement(self) -> Estimate:
        """The share of tokens for which both find the same one likeliest."""
        return mean_of(self.same_best)


def log_probabilities(logits: FloatArray) -> FloatArray:
    """log softmax over each row of logits [n, vocab]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    totals = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    values: FloatArray = shifted - np.log(totals).astype(np.float32)
    return values


def compare(
    logits: FloatArray,
    base_log_probabilities: FloatArray,
    targets: Int32Array,
    floor: float = -np.inf,
) -> Comparison:
    """Compare predictions of the same tokens.

    Args:
        logits: [n, vocab] of the model.
        base_log_probabilities: [n, vocab].
        targets: [n], the tokens that came.
        floor: tokens that the base finds no likelier than this do not count in the divergence.
    """
    own = log_probabilities(logits)
    base = base_log_probabilities
    # 0 · ∞ is 0 here: a token that the base excludes costs nothing.
    gap = np.subtract(base, own, out=np.zeros_like(own), where=base > floor)
    rows = np.arange(len(targets))
    return Comparison(
        nll=-own[rows, targets].astype(np.float64),
        base_nll=-base[rows, targets].astype(np.float64),
        divergence=(np.exp(base) * gap).sum(axis=1, dtype=np.float64),
        same_best=(own.argmax(axis=1) == base.argmax(axis=1)).astype(np.float64),
    )


def joined(parts: Iterable[Comparison]) -> Comparison:
    """All parts as one."""
    columns = zip(
        *((part.nll, part.base_nll, part.divergence, part.same_best) for part in parts), strict=True
    )
    return Comparison(*(np.concatenate(column) for column in columns))
