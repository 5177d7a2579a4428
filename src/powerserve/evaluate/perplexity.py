"""Perplexity by the original's protocol, and by llama.cpp's.

The original's: the text is cut into full batches, an incomplete tail is dropped. The first 17
batches are context only; from batch 18 on, every token but the first of that batch counts, and the
running perplexity exp(mean NLL) is reported after each batch.

llama.cpp's (tools/perplexity): the text is cut into windows that are computed each on its own, and
the second half of each counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import Int32Array, LoadedModel
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError
from powerserve.evaluate.estimate import Estimate, mean_of
from powerserve.evaluate.scoring import StepSettings, batch_logits, token_nll, window_logits

CONTEXT_BATCHES = 17


@dataclass(frozen=True, slots=True)
class PerplexityPoint:
    """The running result: tokens counted, and their perplexity."""

    num_tokens: int
    perplexity: float


def running_perplexity(
    model: LoadedModel, token_ids: Sequence[int], *, batch_size: int, kv_dtype: DType
) -> Iterator[PerplexityPoint]:
    """Yield the result after each batch from the 18th on.

    Raises:
        UsageError: the text has fewer than 18 batches.
    """
    needed = (CONTEXT_BATCHES + 1) * batch_size
    if len(token_ids) < needed:
        raise UsageError(
            f"the text has {len(token_ids)} tokens, but batches of {batch_size} need at least "
            f"{needed}; give a longer text or a smaller batch (-b)"
        )
    tokens = np.asarray(token_ids[: len(token_ids) // batch_size * batch_size], np.int32)
    total, count = 0.0, 0
    batches = batch_logits(model, tokens, batch_size=batch_size, kv_dtype=kv_dtype)
    for index, logits in enumerate(batches):
        if index < CONTEXT_BATCHES:
            continue
        targets = tokens[index * batch_size + 1 : (index + 1) * batch_size + 1]
        nll = token_nll(logits, targets)
        total, count = total + float(nll.sum()), count + len(nll)
        yield PerplexityPoint(count, float(np.exp(total / count)))


def window_perplexity(
    model: LoadedModel, windows: Int32Array, settings: StepSettings
) -> Iterator[Estimate]:
    """Yield the perplexity of windows [n, window] after each of them, with its standard error."""
    per_window = predictions_per_window(windows.shape[1])
    nll: list[float] = []
    for targets, logits in window_logits(model, windows, settings):
        nll += token_nll(logits, targets).tolist()
        if len(nll) % per_window == 0:
            yield mean_of(np.array(nll)).exponential()


def predictions_per_window(window: int) -> int:
    """Tokens of a window that count: the second half without the first of it."""
    return window - 1 - window // 2
