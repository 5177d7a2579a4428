"""How a comparison of two models is shown; the figures have llama.cpp's names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from powerserve.evaluate.divergence import Comparison
from powerserve.evaluate.estimate import Estimate, FloatVector, mean_of

_PERCENTILES = (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1)


def report_lines(comparison: Comparison, *, name: str, base: str) -> Iterator[str]:
    """The whole report; `name` and `base` are what the models are called."""
    yield f"{name} (Q) against {base} (base), {comparison.num_tokens} predictions"
    yield ""
    yield "perplexity"
    yield from _perplexity(comparison)
    yield ""
    yield "KL divergence of Q from base, nats"
    yield _line("mean", mean_of(comparison.divergence))
    yield from _distribution(comparison.divergence)
    yield ""
    yield "Δp: change of the probability of the token that came, %"
    change = 100 * comparison.probability_change
    yield _line("mean", mean_of(change))
    yield _line("RMS", mean_of(change**2).square_root())
    yield from _distribution(change)
    yield ""
    agreement = comparison.agreement
    yield _line("same top p, %", Estimate(100 * agreement.value, 100 * agreement.error))


def _perplexity(comparison: Comparison) -> Iterator[str]:
    yield _line("PPL(Q)", comparison.perplexity)
    yield _line("PPL(base)", comparison.base_perplexity)
    yield _line("PPL(Q) - PPL(base)", comparison.difference)
    yield _line("PPL(Q) / PPL(base)", comparison.log_ratio.exponential())
    yield _line("ln(PPL(Q) / PPL(base))", comparison.log_ratio)
    yield f"  {'correlation of NLL, %':24}{100 * comparison.correlation:11.2f}"


def _distribution(values: FloatVector) -> Iterator[str]:
    yield f"  {'maximum':24}{values.max():11.6f}"
    for percent, value in zip(_PERCENTILES, np.percentile(values, _PERCENTILES), strict=True):
        yield f"  {f'{percent:g} %':24}{value:11.6f}"
    yield f"  {'minimum':24}{values.min():11.6f}"


def _line(label: str, estimate: Estimate) -> str:
    return f"  {label:24}{estimate.value:11.6f} ± {estimate.error:.6f}"
