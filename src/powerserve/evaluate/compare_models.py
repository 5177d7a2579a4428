"""Compares a model with another on a text: one that is loaded as well, or one that was recorded."""

from __future__ import annotations

from collections.abc import Iterator

from powerserve.backend.base import Int32Array, LoadedModel
from powerserve.evaluate.divergence import (
    ROWS_AT_ONCE,
    Comparison,
    compare,
    joined,
    log_probabilities,
)
from powerserve.evaluate.log_probability_file import FLOOR, LogProbabilityFile
from powerserve.evaluate.scoring import StepSettings, window_logits


def compare_models(
    model: LoadedModel, base: LoadedModel, windows: Int32Array, settings: StepSettings
) -> Iterator[Comparison]:
    """Compare on windows [n, window]; yields piece by piece, so that memory stays bounded."""
    own = window_logits(model, windows, settings)
    theirs = window_logits(base, windows, settings)
    for (targets, logits), (_, base_logits) in zip(own, theirs, strict=True):
        yield joined(
            compare(logits[rows], log_probabilities(base_logits[rows]), targets[rows])
            for rows in _blocks(len(targets))
        )


def compare_with_file(
    model: LoadedModel, base: LogProbabilityFile, windows: Int32Array, settings: StepSettings
) -> Iterator[Comparison]:
    """Compare with recorded predictions; `windows` are the file's, started as the model wants."""
    done = 0
    for targets, logits in window_logits(model, windows, settings):
        parts = []
        for rows in _blocks(len(targets)):
            recorded = base.log_probabilities(done, len(targets[rows]))
            parts.append(compare(logits[rows], recorded, targets[rows], FLOOR))
            done += len(recorded)
        yield joined(parts)


def _blocks(num_rows: int) -> list[slice]:
    """A few rows each: arrays of the vocabulary's size are large."""
    return [slice(first, first + ROWS_AT_ONCE) for first in range(0, num_rows, ROWS_AT_ONCE)]
