"""One request inside the engine: its tokens so far, its sampler, its cells."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic

import numpy as np

from powerserve.backend.base import Int32Array
from powerserve.cache.sequence import SequenceCells
from powerserve.engine.prompt_scores import PromptScores
from powerserve.sampler.chain import Sampled, SamplerChain
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.state import SequenceSpeculation


class FinishReason(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"  # an end token, or a stop string
    LENGTH = "length"  # max_tokens were generated
    CONTEXT = "context"  # the context is full
    CANCELLED = "cancelled"  # the caller gave up
    ERROR = "error"  # it asked for something impossible


@dataclass(slots=True)
class Timings:
    """When things happened, in seconds of the monotonic clock (0.0: not yet)."""

    arrived: float = field(default_factory=monotonic)
    started: float = 0.0  # the first step with tokens of this sequence
    first_token: float = 0.0
    finished: float = 0.0

    @property
    def prefill_s(self) -> float:
        """From the first step to the first token."""
        return max(0.0, self.first_token - self.started)

    @property
    def decode_s(self) -> float:
        """From the first token to the last."""
        return max(0.0, self.finished - self.first_token) if self.first_token else 0.0


class Sequence:
    """A prompt and what the model adds to it.

    `token_ids` are all tokens; the first `cells.length` of them are computed and cached. While the
    rest is longer than one token the sequence is prefilling, else it is decoding.
    """

    def __init__(
        self,
        prompt: Int32Array,
        params: SamplingParams,
        sampler: SamplerChain,
        stop_ids: Collection[int],
        cells: SequenceCells,
        max_length: int,
    ) -> None:
        """`max_length` is the context: prompt and generated tokens together never exceed it."""
        self.params = params
        self.sampler = sampler
        self.cells = cells
        self.num_prompt_tokens = len(prompt)
        self.prompt_scores: PromptScores | None = None  # None: nobody asked for them
        self.num_cached_tokens = 0  # of the prompt, taken from earlier sequences
        self.finish_reason: FinishReason | None = None
        self.speculation: SequenceSpeculation | None = None  # once it decodes with speculation
        self.timings = Timings()
        self._stop_ids = frozenset() if params.ignore_eos else frozenset(stop_ids)
        self._max_length = max_length
        self._tokens = np.empty(max_length, np.int32)
        self._tokens[: len(prompt)] = prompt
        self._length = len(prompt)

    @property
    def token_ids(self) -> Int32Array:
        """int32 [prompt + generated]."""
        return self._tokens[: self._length]

    @property
    def generated_ids(self) -> Int32Array:
        """int32 [generated]."""
        return self._tokens[self.num_prompt_tokens : self._length]

    @property
    def num_generated(self) -> int:
        """Tokens the model has added."""
        return self._length - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are not computed yet."""
        return self._length - self.cells.length

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be generated."""
        room = self._max_length - self._length
        if self.params.max_tokens is None:
            return room
        return min(room, self.params.max_tokens - self.num_generated)

    @property
    def is_scoring(self) -> bool:
        """Whether the logits of all tokens are needed, not only of the last one."""
        return self.prompt_scores is not None and not self.prompt_scores.is_complete

    @property
    def is_decoding(self) -> bool:
        """Whether only the newest generated token is left to compute."""
        return self.num_pending == 1 and self.num_generated > 0

    def accept(self, sampled: Sampled) -> None:
        """Add a token and end the sequence if that was its last."""
        self._tokens[self._length] = sampled.token_id
        self._length += 1
        self.sampler.accept(sampled.token_id)
        if self.num_generated == 1:
            self.timings.first_token = monotonic()
        if sampled.token_id in self._stop_ids:
            self.finish(FinishReason.STOP)
        elif self.params.max_tokens is not None and self.num_generated >= self.params.max_tokens:
            self.finish(FinishReason.LENGTH)
        elif self._length == self._max_length:
            self.finish(FinishReason.CONTEXT)

    def finish(self, reason: FinishReason) -> None:
        """Mark the sequence as ended; the first reason stays."""
        if self.finish_reason is None:
            self.finish_reason = reason
            self.timings.finished = monotonic()

    def is_stop_token(self, token_id: int) -> bool:
        """Whether this token ends the sequence (and is not part of its text)."""
        return token_id in self._stop_ids
