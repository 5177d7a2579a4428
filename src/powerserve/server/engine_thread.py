"""The thread that owns an engine: commands come in, events go out, and nothing is shared."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from powerserve.backend.base import StepInterrupted
from powerserve.cache.prefix_store import PrefixFolder
from powerserve.core.errors import BackendError, PowerServeError, UsageError
from powerserve.engine.drawing import TokenEvent
from powerserve.engine.generation import TextGeneration, TextPiece
from powerserve.engine.loader import LoadedEngine
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.params import SamplingParams
from powerserve.server.embedding_queue import EmbeddingQueue
from powerserve.server.events import (
    Accepted,
    Ended,
    Event,
    Failed,
    Piece,
    Prefilled,
    Usage,
)
from powerserve.server.logprobs import LogprobQueue, prompt_scored
from powerserve.server.saved_prefixes import SavedPrefixes
from powerserve.speculative.options import SpeculationCounters

logger = logging.getLogger("powerserve.server")

Report = list[tuple[int, Event]]  # (key of the request, what happened)


@dataclass(frozen=True, slots=True)
class Task:
    """One answer to generate."""

    prompt: list[int]
    params: SamplingParams
    constraint: Constraint | None = None  # the engine's once the task has begun
    visible: frozenset[int] = frozenset()  # control tokens that are part of the text
    score_prompt: bool = False  # say how likely the prompt's tokens are


@dataclass(frozen=True, slots=True)
class Start:
    """Begin a generation; its events carry `key`."""

    key: int
    task: Task


@dataclass(frozen=True, slots=True)
class Embed:
    """Compute the embedding of a text."""

    key: int
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a generation or an embedding whose reader has gone."""

    key: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread, whatever still runs."""


Command = Start | Embed | Cancel | Stop


class EngineThread:
    """Runs an engine's steps as long as there is work, and sleeps otherwise.

    After every step `report` gets all events of that step at once; `ended` is called last, with
    what ended the thread if it was not `stop`. Both are called in the thread, so they must be quick
    and must not raise. The thread closes the engine when it ends. With a folder for `prefixes` it
    begins with those that were saved, and saves what there is when it is stopped.
    """

    def __init__(
        self,
        loaded: LoadedEngine,
        report: Callable[[Report], None],
        ended: Callable[[PowerServeError], None],
        prefixes: PrefixFolder | None = None,
    ) -> None:
        self._loaded = loaded
        self._prefixes = SavedPrefixes(loaded, prefixes)
        self._report = report
        self._ended = ended
        self._inbox: SimpleQueue[Command] = SimpleQueue()
        self._running: dict[int, _Generation] = {}
        self._by_sequence: dict[Sequence, _Generation] = {}
        self._embeddings = EmbeddingQueue(loaded)
        self._thread = threading.Thread(
            target=self._run, name=f"engine {loaded.source.name}", daemon=True
        )

    def start(self) -> None:
        """Begin to take commands."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Leave a command, which is obeyed before the next step; from any thread."""
        self._inbox.put(command)

    def stop(self) -> None:
        """End what runs, release the model and wait for that; blocks."""
        self._inbox.put(Stop())
        self._loaded.backend.interrupt()
        self._thread.join()

    def _run(self) -> None:
        reason: PowerServeError = BackendError("the model was unloaded")
        try:
            self._prepare()
            self._run_steps()
            self._prefixes.save()
        except Exception as error:
            logger.exception("the engine of %s failed", self._loaded.source.name)
            reason = _as_sentence(error)
        finally:
            self._ended(reason)
            self._embeddings.close()
            self._loaded.close()
            self._let_go()

    def _let_go(self) -> None:
        """Forget who listens.

        It keeps this object, and all of the model with it: as long as each keeps the other, the
        memory of both waits for the garbage collector, which comes late to large old objects.
        """
        self._report = self._ended = _nobody_listens

    def _prepare(self) -> None:
        """Do now what would hold up every answer later, because it keeps the interpreter."""
        with suppress(UsageError):  # whoever asks for a grammar is told
            self._loaded.grammars.prepare()
        self._prefixes.restore()

    def _run_steps(self) -> None:
        try:
            while self._obey():
                self._report(self._step())
        except StepInterrupted:
            pass  # by `stop`

    def _obey(self) -> bool:
        """Carry out the commands there are, waiting for one if idle; False to end the thread."""
        report: Report = []
        going_on = True
        while going_on and (command := self._next_command()) is not None:
            match command:
                case Start():
                    report += self._begin(command)
                case Embed():
                    self._embeddings.add(command.key, command.token_ids)
                case Cancel():
                    report += self._cancel(command.key)
                case Stop():
                    going_on = False
            if report and not self._has_work:
                break  # about to sleep: tell first
        if report:
            self._report(report)
        return going_on

    @property
    def _has_work(self) -> bool:
        return self._loaded.engine.has_work or bool(self._embeddings)

    def _next_command(self) -> Command | None:
        try:
            return self._inbox.get(block=not self._has_work)
        except Empty:
            return None

    def _begin(self, command: Start) -> Report:
        task = command.task
        try:
            sequence = self._loaded.engine.add(
                task.prompt, task.params, task.constraint, score_prompt=task.score_prompt
            )
        except Exception as error:  # of this request; the others shall not notice
            return [(command.key, Failed(error))]
        generation = _Generation(command.key, self._loaded, sequence, task.visible)
        accepted = (command.key, Accepted(len(task.prompt)))
        if sequence.finish_reason is not None:  # nothing was asked for
            return [accepted, (command.key, generation.ended())]
        self._running[command.key] = generation
        self._by_sequence[sequence] = generation
        return [accepted]

    def _cancel(self, key: int) -> Report:
        if self._embeddings.cancel(key):
            return [(key, Failed(BackendError("the embedding was cancelled")))]
        generation = self._running.get(key)
        if generation is None:  # it ended in the meantime
            return []
        self._loaded.engine.cancel(generation.sequence)
        self._forget(generation)
        return [(key, generation.ended())]

    def _step(self) -> Report:
        """A step of the engine, then a chunk of the oldest embedding: both get on."""
        report = self._generate() if self._loaded.engine.has_work else []
        return report + self._embeddings.advance()

    def _generate(self) -> Report:
        report: Report = []
        for event in self._loaded.engine.step():
            generation = self._by_sequence.get(event.sequence)
            if generation is not None:
                events = generation.feed(event)
                report += [(generation.key, each) for each in events]
                if events and isinstance(events[-1], Ended | Failed):
                    self._forget(generation)
        for generation in self._running.values():
            report += [(generation.key, each) for each in generation.progress()]
        return report

    def _forget(self, generation: _Generation) -> None:
        del self._running[generation.key]
        del self._by_sequence[generation.sequence]


class _Generation:
    """One request inside the thread."""

    def __init__(
        self, key: int, loaded: LoadedEngine, sequence: Sequence, visible: frozenset[int]
    ) -> None:
        self.key = key
        self.sequence = sequence
        self._text = TextGeneration(loaded.engine, sequence, loaded.tokenizer, visible=visible)
        self._tokenizer = loaded.tokenizer
        self._logprobs = LogprobQueue(loaded.tokenizer)
        self._num_tokens = 0
        self._num_prefilled = 0
        self._ended_by_token = False
        self._has_told_scores = False

    def feed(self, event: TokenEvent) -> list[Event]:
        """The events that the engine's event amounts to."""
        try:
            piece = self._text.feed(event)
        except PowerServeError as error:
            return [Failed(error)]
        self._note(piece)
        events: list[Event] = self._scores()
        if piece.sampled is not None or piece.text:
            logprobs = self._logprobs.release(piece.text, all_shown=self._is_complete(piece))
            events.append(Piece(piece.text, int(piece.sampled is not None), logprobs))
        if piece.finish_reason is not None:
            events.append(self.ended())
        return events

    def _scores(self) -> list[Event]:
        """Those of the prompt, the first time that they are there."""
        scores = self.sequence.prompt_scores
        if scores is None or self._has_told_scores or not scores.is_complete:
            return []
        self._has_told_scores = True
        return [prompt_scored(self._tokenizer, scores.scored)]

    def _note(self, piece: TextPiece) -> None:
        if piece.sampled is None:
            return
        self._num_tokens += 1
        self._ended_by_token = self.sequence.is_stop_token(piece.sampled.token_id)
        # Programs that have a prompt scored count on an entry for each token behind it.
        if not self._ended_by_token or self.sequence.prompt_scores is not None:
            self._logprobs.push(piece.sampled)

    def _is_complete(self, piece: TextPiece) -> bool:
        """Whether the text has ended, and not before a stop string."""
        reason = piece.finish_reason
        return reason is not None and (reason != FinishReason.STOP or self._ended_by_token)

    def progress(self) -> list[Event]:
        """How far the prompt is, if it has come further."""
        done = min(self.sequence.cells.length, self.sequence.num_prompt_tokens)
        if self._num_tokens or done == self._num_prefilled:
            return []
        self._num_prefilled = done
        return [Prefilled(done)]

    def ended(self) -> Ended:
        """The last event."""
        # A stop string may come before what the engine ended the sequence for in the same step.
        reason = self._text.finish_reason or self.sequence.finish_reason or FinishReason.CANCELLED
        usage = _usage(self.sequence, self._num_tokens)
        return Ended(reason, usage, self._ended_by_token, self._text.stop_text)


def _nobody_listens(what: object) -> None:
    """What is said is lost."""


def _usage(sequence: Sequence, num_generated: int) -> Usage:
    timings = sequence.timings
    guesses = sequence.speculation.counters if sequence.speculation else SpeculationCounters()
    return Usage(
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        num_generated=num_generated,
        queued_s=max(0.0, (timings.started or timings.finished) - timings.arrived),
        prefill_s=timings.prefill_s if timings.started else 0.0,
        decode_s=timings.decode_s,
        num_candidates=guesses.num_draft_tokens,
        num_accepted=guesses.num_accepted_tokens,
    )


def _as_sentence(error: Exception) -> PowerServeError:
    if isinstance(error, PowerServeError):
        return error
    return BackendError(f"the engine failed ({type(error).__name__}); the server's log says why")
