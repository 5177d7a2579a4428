"""The step loop: schedule, run, sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from time import monotonic

import numpy as np

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex
from powerserve.cache.prefix_store import PrefixStore
from powerserve.cache.sequence import SequenceCells
from powerserve.core import dtypes
from powerserve.core.dtypes import DType
from powerserve.core.errors import ContextLengthError, UsageError
from powerserve.core.tracing import GENERATED_TOKENS, NO_TRACER, Tracer
from powerserve.engine.batching import batch_of
from powerserve.engine.drawing import Drawing, TokenEvent
from powerserve.engine.prompt_scores import PromptScores
from powerserve.engine.scheduler import Chunk, Scheduler
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.engine.speculation import TreeDecoding
from powerserve.executor.executor import Executor, cache_cells
from powerserve.sampler.chain import SamplerChain
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.params import SamplingParams
from powerserve.speculative.speculator import Speculator
from powerserve.speculative.step_timer import time_step


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes and switches of an engine."""

    context_size: int  # tokens of one sequence, prompt and answer together
    num_cells: int = 0  # tokens cached for all sequences and prefixes; 0: one context
    batch_size: int = 512  # tokens in one step
    max_sequences: int = 16  # running at once
    kv_dtype: DType = dtypes.F16
    max_gap_s: float | None = None  # between two tokens of an answer, beside others' prompts
    deterministic: bool = False  # one sequence at a time, and no prefix is used again

    def __post_init__(self) -> None:
        for name in ("context_size", "batch_size", "max_sequences"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class CacheUse:
    """How many cells of the KV cache there are, are taken, and belong to prefixes."""

    num_cells: int
    num_taken: int  # by sequences or prefixes
    num_kept: int  # by prefixes, whoever else uses them


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
        speculator: Speculator | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """`stop_ids` end a sequence that does not ignore them; `newline_id` is for penalties.

        The engine closes the speculator.
        """
        self.config = config
        self.model = model
        self._stop_ids = frozenset(stop_ids)
        self._newline_id = newline_id
        self._tracer = tracer
        num_cells = cache_cells(model, max(config.num_cells, config.context_size))
        self._cache = model.new_cache(num_cells, config.kv_dtype)
        self._executor = Executor(model, self._cache)
        self._executor.reserve(min(config.batch_size, num_cells))
        self._pool = CellPool(num_cells)
        self._prefixes = None if config.deterministic else PrefixIndex(self._pool)
        self._keep_given_prefix()
        self._scheduler = Scheduler(
            self._pool,
            self._prefixes,
            self._cache.copy,
            batch_size=config.batch_size,
            max_sequences=1 if config.deterministic else config.max_sequences,
            max_gap_s=config.max_gap_s,
        )
        self.speculator = speculator  # None: each step makes one token of a sequence
        self._trees: TreeDecoding | None = None
        if speculator is not None:
            speculator.attach(partial(time_step, self._executor, self._pool))
            self._trees = TreeDecoding(speculator, self._pool, config.batch_size)
        self._drawing = Drawing(self._cache.copy, self._trees)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def kv_bytes(self) -> int:
        """Memory of the KV cache when it is full."""
        return self._cache.size_bytes

    @property
    def cache_use(self) -> CacheUse:
        """What is in the KV cache; other threads may ask too, and see it up to a step late."""
        pool, prefixes = self._pool, self._prefixes
        kept = 0 if prefixes is None else prefixes.num_cells
        return CacheUse(pool.num_cells, pool.num_cells - pool.num_free, kept)

    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        constraint: Constraint | None = None,
        *,
        score_prompt: bool = False,
    ) -> Sequence:
        """Queue a prompt; the answer follows `constraint`, which the sequence then owns.

        With `score_prompt` the sequence's `prompt_scores` are complete when its first token comes,
        with as many alternatives as `params.logprobs`; then no stored prefix can be used.

        Raises:
            ContextLengthError: the prompt leaves no room for an answer.
            UsageError: the prompt is empty or names a token that does not exist.
        """
        sequence = self._new_sequence(self._checked(prompt), params, constraint)
        if score_prompt:
            scored = sequence.token_ids.copy()
            sequence.prompt_scores = PromptScores(scored, params.logprobs or 0)
        elif params.max_tokens == 0:
            sequence.finish(FinishReason.LENGTH)
            return sequence
        self._scheduler.add(sequence)
        return sequence

    def step(self) -> list[TokenEvent]:
        """Compute one batch and sample: an event for each token, or end without one, in order."""
        span = self._tracer.span
        with span("step"):
            with span("schedule"):
                chunks = self._scheduler.schedule()
            if not chunks:
                return self._retire_finished([])
            if self._trees is not None:
                with span("draft"):
                    chunks = self._extended(chunks, self._trees)
            with span(_phase(chunks), sequences=len(chunks)):
                logits = self._run(chunks)
            with span("sample"):
                events = self._drawing.events(chunks, logits)
            num_tokens = sum(event.sampled is not None for event in events)
            self._tracer.add(GENERATED_TOKENS, num_tokens)
            return self._retire_finished(events)

    def cancel(self, sequence: Sequence, reason: FinishReason = FinishReason.CANCELLED) -> None:
        """End a sequence now; its cells are free (or a stored prefix) when this returns."""
        sequence.finish(reason)
        if sequence in self._scheduler.running or sequence in self._scheduler.waiting:
            self._retire(sequence)

    def clear_prefixes(self) -> None:
        """Forget every stored prefix, those of the draft model too."""
        if self._prefixes is not None:
            self._prefixes.clear()
        if self.speculator is not None:
            self.speculator.clear_prefixes()

    def save_prefixes(self, store: PrefixStore) -> int:
        """Save the stored prefixes; how many tokens those are. Raises PrefixFileError."""
        return 0 if self._prefixes is None else store.save(self._prefixes, self._cache)

    def restore_prefixes(self, store: PrefixStore) -> int:
        """Bring saved prefixes back; how many tokens those are. Raises PrefixFileError."""
        if self._prefixes is None:
            return 0
        return store.restore(self._prefixes, self._pool, self._cache)

    def close(self) -> None:
        """Release cache, graphs and speculation with its draft model; the model stays loaded."""
        if self.speculator is not None:
            self.speculator.close()
        self._executor.close()
        self._cache.close()

    def _keep_given_prefix(self) -> None:
        """Put what comes with the model into the cache, if it leaves room for an answer there."""
        given = self.model.prefix
        if given is None or self._prefixes is None or len(given.token_ids) >= self._pool.num_cells:
            return
        cells = self._pool.allocate(len(given.token_ids), 0)
        assert cells is not None  # nobody else has any yet
        self._cache.restore(cells, given.content)
        self._prefixes.insert_given(given.token_ids, cells)
        self._pool.release(cells)

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

    def _extended(self, chunks: list[Chunk], trees: TreeDecoding) -> list[Chunk]:
        try:
            return trees.extend(chunks)
        except BaseException:
            self._release(chunks)
            raise

    def _run(self, chunks: list[Chunk]) -> FloatArray:
        """Compute the chunks; logits [outputs of all chunks, vocab]."""
        start_s = monotonic()
        for chunk in chunks:
            if not chunk.sequence.timings.started:
                chunk.sequence.timings.started = start_s
        try:
            batch = batch_of(chunks)
            with self._tracer.span("backend", tokens=len(batch.token_ids)):
                logits = self._executor.run(batch)
        except BaseException:
            self._release(chunks)
            raise
        seconds = monotonic() - start_s
        self._scheduler.observe_step(chunks, seconds)
        if self._trees is not None:
            self._trees.observe_step(chunks, seconds)
        return logits

    def _release(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self._pool.release(chunk.cells)

    def _retire(self, sequence: Sequence) -> None:
        self._scheduler.retire(sequence)
        if self._trees is not None:
            self._trees.release(sequence)

    def _retire_finished(self, events: list[TokenEvent]) -> list[TokenEvent]:
        reported = {id(event.sequence) for event in events}
        for sequence in [s for s in self._scheduler.running if s.finish_reason is not None]:
            self._retire(sequence)
            if id(sequence) not in reported:
                events.append(TokenEvent(sequence, None, sequence.finish_reason))
        return events


def _phase(chunks: list[Chunk]) -> str:
    """What a step does: parts of prompts are in it, or candidates, or neither."""
    if not all(chunk.sequence.is_decoding for chunk in chunks):
        return "prefill"
    return "verify" if any(chunk.tree is not None for chunk in chunks) else "decode"
