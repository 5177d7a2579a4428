"""Repetition penalties over the last tokens of a sequence, prompt included."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from powerserve.sampler.candidates import Floats
from powerserve.sampler.params import SamplingParams


class PenaltyWindow:
    """The last `penalty_last_n` tokens of one sequence and how often each occurs in them."""

    def __init__(self, last_n: int, tokens: Iterable[int] = ()) -> None:
        """`last_n` as in SamplingParams: -1 means that no token is ever forgotten."""
        self._limit = last_n if last_n >= 0 else None
        self._recent: deque[int] = deque()  # stays empty if nothing is forgotten
        self._counts: dict[int, int] = {}
        for token_id in tokens:
            self.push(token_id)

    def push(self, token_id: int) -> None:
        """Append a token; the oldest leaves when the window is full."""
        self._counts[token_id] = self._counts.get(token_id, 0) + 1
        if self._limit is None:
            return
        self._recent.append(token_id)
        if len(self._recent) > self._limit:
            self._forget(self._recent.popleft())

    def copy(self) -> PenaltyWindow:
        """Return an independent window with the same content."""
        twin = PenaltyWindow(-1)
        twin._limit = self._limit
        twin._recent = self._recent.copy()
        twin._counts = self._counts.copy()
        return twin

    def counts(self, *, without: int | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct tokens and their counts, both [n], but for the token `without`."""
        ids = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.int64, len(self._counts))
        if without in self._counts:
            others = ids != without
            return ids[others], counts[others]
        return ids, counts

    def _forget(self, token_id: int) -> None:
        self._counts[token_id] -= 1
        if not self._counts[token_id]:
            del self._counts[token_id]


def penalised(logits: Floats, counts: NDArray[np.int64], params: SamplingParams) -> Floats:
    """Return the logits [n] of tokens that occurred `counts` [n] >= 1 times, made less likely.

    Source: Keskar et al. 2019 (repeat), OpenAI's API reference (frequency and presence).
    """
    repeated = np.where(logits <= 0, logits * params.repeat_penalty, logits / params.repeat_penalty)
    flat = counts * params.frequency_penalty + params.presence_penalty
    lowered: Floats = (repeated - flat).astype(np.float32)
    return lowered
