"""How likely each token of a prompt is after those before it."""

from __future__ import annotations

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.sampler.chain import Sampled
from powerserve.sampler.logprobs import log_probabilities

MAX_ROWS = 64
"""Tokens of a step that are scored: each needs memory for a row of logits."""


class PromptScores:
    """Collects the log-probabilities of a prompt's tokens while its chunks are computed.

    `scored` has one entry for each token so far; the first token follows nothing, so it has none.
    """

    def __init__(self, prompt: Int32Array, num_top: int) -> None:
        """`num_top`: how many of the likeliest tokens to report with each."""
        self.scored = [Sampled(int(prompt[0]))]
        self._prompt = prompt
        self._num_top = num_top

    @property
    def is_complete(self) -> bool:
        """Whether every token has been scored."""
        return len(self.scored) == len(self._prompt)

    def add(self, position: int, logits: FloatArray) -> None:
        """Take the logits [n, vocab] behind the prompt's tokens from `position` on.

        What was scored before its cells were lost is not scored again.
        """
        for row in logits[len(self.scored) - 1 - position :]:
            if self.is_complete:
                return
            token_id = int(self._prompt[len(self.scored)])
            self.scored.append(Sampled(token_id, *log_probabilities(row, token_id, self._num_top)))
