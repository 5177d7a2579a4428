"""A search: the target answers once, then each point is replayed with the draft model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from powerserve.core import machine
from powerserve.evaluate.tree_search.answers import known_answers
from powerserve.evaluate.tree_search.database import PointDatabase
from powerserve.evaluate.tree_search.folder import Record, SearchFolder, Subject
from powerserve.evaluate.tree_search.predictions import DraftPredictions
from powerserve.evaluate.tree_search.replay import TreeReplay
from powerserve.evaluate.tree_search.timing import StepTimes, fastest_steps_ms
from powerserve.llm import LLM
from powerserve.speculative.options import SpeculationCounters, TreeParams
from powerserve.speculative.vocabulary import check_same_vocabulary
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.resolve import ModelSource


class TreeSearch:
    """Tries points for one subject, and goes on where an earlier search was stopped.

    The two models are never needed at the same time: while `needs_target`, call `ask_target`; then,
    while `needs_draft`, call `try_points`.
    """

    def __init__(
        self,
        folder: SearchFolder,
        subject: Subject,
        points: Sequence[TreeParams],
        progress: Progress = SILENT,
    ) -> None:
        """Raises UsageError if the folder is about another subject, ConfigError for bad files."""
        self._folder = folder
        self._subject = subject
        self._points = points
        self._progress = progress
        self._record = folder.record_of(subject)
        self._times = folder.times()
        self._database = PointDatabase(folder.database, progress)

    @property
    def needs_target(self) -> bool:
        """Whether its answers or its times are not known."""
        return self._record is None or bool(self._unmeasured_sizes)

    @property
    def needs_draft(self) -> bool:
        """Whether points are missing, or the draft's time."""
        return bool(self._missing_points) or self._times.draft_ms is None

    def ask_target(self, target: LLM) -> None:
        """Let the target answer, and measure its steps. Raises ContextLengthError, UsageError."""
        if self._record is None:
            self._folder.create()  # better to fail now than after the answers
            self._record = self._answered(target)
            self._folder.write_record(self._record)
        if sizes := self._unmeasured_sizes:
            loaded = target.loaded
            measured = fastest_steps_ms(loaded.model, sizes, loaded.options.kv_dtype)
            self._keep_times(
                replace(self._times, target_ms=self._times.target_ms | measured), target
            )

    def try_points(self, draft: LLM) -> None:
        """Measure the draft's step, and replay the points that are missing."""
        loaded = draft.loaded
        if self._times.draft_ms is None:
            (draft_ms,) = fastest_steps_ms(loaded.model, [1], loaded.options.kv_dtype).values()
            self._keep_times(replace(self._times, draft_ms=draft_ms), draft)
        missing = self._missing_points
        num_done = len(self._points) - len(missing)
        with (
            self._replays(draft) as replays,
            self._progress.count("points", len(self._points), num_done) as advance,
        ):
            for params in missing:
                self._database.add(params, _total(replays, params))
                advance(1)

    @property
    def _missing_points(self) -> list[TreeParams]:
        return [params for params in self._points if params not in self._database.points]

    @property
    def _unmeasured_sizes(self) -> set[int]:
        """Sizes of trees, and 1 for plain decoding, to compare with."""
        wanted = {1, *(params.draft_batch_size for params in self._points)}
        return wanted - self._times.target_ms.keys()

    def _answered(self, target: LLM) -> Record:
        subject, loaded = self._subject, target.loaded
        answers = known_answers(
            target,
            subject.prompts,
            max_tokens=subject.max_tokens,
            chat=subject.chat,
            progress=self._progress,
        )
        stop_ids = tuple(sorted(loaded.tokenizer.stop_ids))
        return Record(subject, tuple(answers), stop_ids, loaded.config.vocab_size)

    def _keep_times(self, times: StepTimes, measured_on: LLM) -> None:
        backend = measured_on.loaded.backend
        device = f"{machine.cpu_name()}, {backend.name}, {backend.num_threads} threads"
        self._times = replace(times, device=device)
        self._folder.write_times(self._times)

    @contextmanager
    def _replays(self, draft: LLM) -> Iterator[list[TreeReplay]]:
        """A replay of each answer; the draft reads the answers now."""
        record = self._record
        assert record is not None, "ask_target comes first"
        replays: list[TreeReplay] = []
        with ExitStack() as undo:
            for answer in record.answers:
                predictions = DraftPredictions(
                    draft.loaded.model,
                    answer,
                    num_best=max(params.top_k for params in self._points),
                    max_detour=max(params.draft_batch_size for params in self._points),
                    vocab_size=record.vocab_size,
                    kv_dtype=draft.loaded.options.kv_dtype,
                )
                undo.callback(predictions.close)
                max_tokens = record.subject.max_tokens
                replays.append(
                    TreeReplay(predictions, max_tokens=max_tokens, stop_ids=record.stop_ids)
                )
            yield replays


def check_pair(target: ModelSource, draft: ModelSource) -> None:
    """Raise UsageError unless both models have the same tokens."""
    with GGUFFile.open(target.vocab) as ours, GGUFFile.open(draft.vocab) as theirs:
        check_same_vocabulary(ours.metadata, theirs.metadata, draft.name)


def _total(replays: Sequence[TreeReplay], params: TreeParams) -> SpeculationCounters:
    total = SpeculationCounters()
    for replay in replays:
        total.add(replay.run(params))
    return total
