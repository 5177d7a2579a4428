"""The step loop: schedule, run, sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic

import numpy as np

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex
from powerserve.cache.sequence import SequenceCells
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import ContextLengthError, PowerServeError, UsageError
from powerserve.engine.batching import build_batch
from powerserve.engine.scheduler import Chunk, Scheduler
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.executor.executor import CELL_BLOCK, Executor
from powerserve.sampler.chain import Sampled, SamplerChain
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.params import SamplingParams


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and switches of an engine."""

    context_size: int  # tokens of one sequence, prompt and answer together
    num_cells: int = 0  # tokens cached for all sequences and prefixes; 0: one context
    batch_size: int = 512  # tokens in one step
    max_sequences: int = 16  # running at once
    kv_dtype: DType = dtypes.F16
    deterministic: bool = False  # one sequence at a time, and no prefix is used again

    def __post_init__(self) -> None:
        for name in ("context_size", "batch_size", "max_sequences"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, eq=False)
class TokenEvent:
    """A sequence got a token, or ended without one (`sampled` is None), perhaps by an error."""

    sequence: Sequence
    sampled: Sampled | None
    error: PowerServeError | None = None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Set with the sequence's last event."""
        return self.sequence.finish_reason


class Engine:
    """Runs any number of sequences over one model and one KV cache.

    Not thread-safe: one thread adds sequences and calls `step` until `has_work` is false.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig,
        *,
        stop_ids: Collection[int] = (),
        newline_id: int | None = None,
    ) -> None:
        """`stop_ids` end a sequence that does not ignore them; `newline_id` is for penalties."""
        self.config = config
        self.model = model
        self._stop_ids = frozenset(stop_ids)
        self._newline_id = newline_id
        num_cells = max(config.num_cells, config.context_size)
        num_cells = -(-num_cells // CELL_BLOCK) * CELL_BLOCK
        self._cache = model.new_cache(num_cells, config.kv_dtype)
        self._executor = Executor(model, self._cache)
        self._executor.reserve(min(config.batch_size, num_cells))
        self._pool = CellPool(num_cells)
        self._prefixes = None if config.deterministic else PrefixIndex(self._pool)
        self._scheduler = Scheduler(
            self._pool,
            self._prefixes,
            self._cache.copy,
            batch_size=config.batch_size,
            max_sequences=1 if config.deterministic else config.max_sequences,
        )

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def kv_bytes(self) -> int:
        """Memory of the KV cache when it is full."""
        return self._cache.size_bytes

    def add(
        self, prompt: list[int], params: SamplingParams, constraint: Constraint | None = None
    ) -> Sequence:
        """Queue a prompt; the answer follows `constraint`, which the sequence then owns.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer.
            UsageError: the prompt is empty or names a token that does not exist.
        """
        sequence = self._new_sequence(self._checked(prompt), params, constraint)
        if params.max_tokens == 0:
            sequence.finish(FinishReason.LENGTH)
        else:
            self._scheduler.add(sequence)
        return sequence

    def step(self) -> list[TokenEvent]:
        """Compute one batch and sample; one event per sequence that got a token or ended."""
        chunks = self._scheduler.schedule()
        events = self._sample(chunks, self._run(chunks)) if chunks else []
        return self._retire_finished(events)

    def cancel(self, sequence: Sequence, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a sequence now; its cells are free (or a stored prefix) when this returns."""
        sequence.finish(reason)
        if sequence in self._scheduler.running or sequence in self._scheduler.waiting:
            self._scheduler.retire(sequence)

    def clear_prefixes(self) -> None:
        """Forget every stored prefix."""
        if self._prefixes is not None:
            self._prefixes.clear()

    def close(self) -> None:
        """Release cache and graphs; the model stays loaded."""
        self._executor.close()
        self._cache.close()

    def _checked(self, prompt: list[int]) -> list[int]:
        limit = self.config.context_size
        if not prompt:
            raise UsageError("the prompt is empty; give at least one token")
        if len(prompt) >= limit:
            raise ContextLengthError(
                f"the prompt has {len(prompt):,} tokens, but the context holds {limit:,} with the "
                "answer; shorten the prompt or choose a larger context (-c)"
            )
        vocab_size = self.model.config.vocab_size
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise UsageError(f"the prompt has a token id outside 0 to {vocab_size - 1}")
        return prompt

    def _new_sequence(
        self, prompt: list[int], params: SamplingParams, constraint: Constraint | None
    ) -> Sequence:
        sampler = SamplerChain(
            params,
            vocab_size=self.model.config.vocab_size,
            eos_ids=self._stop_ids,
            newline_id=self._newline_id,
            prompt=prompt,
            constraint=constraint,
        )
        limit = self.config.context_size
        cells = SequenceCells(self._pool, limit)
        return Sequence(np.array(prompt, np.int32), params, sampler, self._stop_ids, cells, limit)

    def _run(self, chunks: list[Chunk]) -> FloatArray:
        """Compute the chunks; logits [complete chunks, vocab]."""
        for chunk in chunks:
            if not chunk.sequence.timings.started:
                chunk.sequence.timings.started = monotonic()
        try:
            logits = self._executor.run(build_batch(chunks))
        except BaseException:
            for chunk in chunks:
                self._pool.release(chunk.cells)
            raise
        return logits

    def _sample(self, chunks: list[Chunk], logits: FloatArray) -> list[TokenEvent]:
        """Note what was computed, and draw a token for each sequence that is complete."""
        events: list[TokenEvent] = []
        for chunk in chunks:
            completes = chunk.completes
            chunk.sequence.cells.append(chunk.token_ids, chunk.cells)
            if completes:
                events.append(_draw(chunk.sequence, logits[len(events)]))
        return events

    def _retire_finished(self, events: list[TokenEvent]) -> list[TokenEvent]:
        reported = {id(event.sequence) for event in events}
        for sequence in [s for s in self._scheduler.running if s.finish_reason is not None]:
            self._scheduler.retire(sequence)
            if id(sequence) not in reported:
                events.append(TokenEvent(sequence, None))
        return events


def _draw(sequence: Sequence, logits: FloatArray) -> TokenEvent:
    """Sample one sequence; what goes wrong with it must not stop the others."""
    try:
        sampled = sequence.sampler.sample(logits)
    except PowerServeError as error:
        sequence.finish(FinishReason.ERROR)
        return TokenEvent(sequence, None, error)
    sequence.accept(sampled)
    return TokenEvent(sequence, sampled)
