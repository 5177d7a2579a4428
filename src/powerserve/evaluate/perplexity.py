"""Perplexity by the original's protocol.

The text is cut into full batches, an incomplete tail is dropped. The first 17 batches are context
only; from batch 18 on, every token but the first of that batch counts, and the running perplexity
exp(mean NLL) is reported after each batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import LoadedModel
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError
from powerserve.evaluate.scoring import batch_logits, token_nll

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
