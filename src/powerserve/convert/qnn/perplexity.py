"""Perplexity of lowered graphs on the CPU: what quantisation costs, before anything is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuLMHead
from powerserve.convert.qnn.source import NpuModel
from powerserve.evaluate.estimate import Estimate, mean_of
from powerserve.evaluate.scoring import token_nll


def perplexity(
    model: NpuModel,
    chunks: Iterable[CpuChunk],
    lm_head: CpuLMHead,
    texts: Sequence[Sequence[int]],
    num_skipped: int = 0,
) -> Estimate:
    """The perplexity of texts (token ids), each computed on its own from position 0.

    The first `num_skipped` tokens of each text are only context. `chunks` are taken one by one, so
    that memory need not hold all of them. Raises ContextLengthError if a text does not fit.
    """
    hidden = [model.embed(text) for text in texts]
    for chunk in chunks:
        hidden = [chunk.run(each) for each in hidden]
    nll = [
        value
        for text, states in zip(texts, hidden, strict=True)
        for value in _text_nll(lm_head, states[num_skipped:-1], text[num_skipped + 1 :])
    ]
    return mean_of(np.array(nll)).exponential()


def _text_nll(lm_head: CpuLMHead, hidden: FloatArray, targets: Sequence[int]) -> list[float]:
    """The negative log-likelihood of each target, which follows one of the hidden states."""
    found: list[float] = []
    for outputs in lm_head.run(hidden):
        logits = outputs["logits"]
        expected = np.asarray(targets[len(found) : len(found) + len(logits)], np.int32)
        found += token_nll(logits, expected).tolist()
    return found
