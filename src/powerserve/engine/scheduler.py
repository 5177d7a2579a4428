"""What the next step computes: a token for each decoding sequence, then pieces of new prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import Int32Array, Int64Array
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex, common_prefix
from powerserve.cache.sequence import CopyCells
from powerserve.engine.pace import PrefillPace
from powerserve.engine.prompt_scores import MAX_ROWS
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.speculative.tree import FlatTree

USUAL_ANSWER = 512  # tokens
SURE_ANSWER = 256  # tokens: for so many, stored prefixes make way at once
WORTH_WAITING = 32  # tokens: a prefix that is being computed and so long is waited for


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Tokens of one sequence in the next step, and the cells allocated for them.

    With a tree they are its tokens: the sequence's last one and candidates for what follows.
    """

    sequence: Sequence
    token_ids: Int32Array
    cells: Int64Array
    tree: FlatTree | None = None

    @property
    def completes(self) -> bool:
        """Whether the sequence has nothing left to compute after this chunk: its turn to sample."""
        return self.tree is not None or len(self.token_ids) == self.sequence.num_pending

    @property
    def num_outputs(self) -> int:
        """Tokens of which logits are computed."""
        if self.tree is not None:
            return len(self.tree)
        if self.sequence.is_scoring:
            return len(self.token_ids)
        return 1 if self.completes else 0


class Scheduler:
    """Shares out the tokens of a step and the cells of the cache.

    Decoding sequences come first, so that a long prompt delays them by at most one step; prompts
    then fill the step, as far as the pace allows it. The oldest prompt is sure of half of that, so
    that none waits for ever; the shortest go first with the rest, so that a question is not held up
    by a book. A prompt that begins like one that is being computed waits and shares its cells.

    When no cell is free, stored prefixes go first; then the youngest sequence gives up its cells
    and is computed again later.
    """

    def __init__(
        self,
        pool: CellPool,
        prefixes: PrefixIndex | None,
        copy_cells: CopyCells,
        *,
        batch_size: int,
        max_sequences: int,
        max_gap_s: float | None = None,
    ) -> None:
        """Args:
        pool: the cells of the cache.
        prefixes: None if nothing shall be kept and used again.
        copy_cells: copies the content of cells (sources, targets).
        batch_size: tokens in one step.
        max_sequences: sequences running at once.
        max_gap_s: see PrefillPace.
        """
        self._pool = pool
        self._prefixes = prefixes
        self._copy_cells = copy_cells
        self._batch_size = batch_size
        self._max_sequences = max_sequences
        self._pace = PrefillPace(max_gap_s, batch_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self.waiting.append(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty if nothing can run."""
        self._admit()
        chunks: list[Chunk] = []
        for sequence, count in self._shares():
            if sequence in self.running:  # it may have lost its cells just now
                cells = self._cells_for(sequence, count, chunks)
                if cells is not None:
                    chunks.append(_take(sequence, cells))
        return chunks

    def observe_step(self, chunks: list[Chunk], seconds: float) -> None:
        """Note how long a step took."""
        prompts = [chunk for chunk in chunks if not chunk.sequence.is_decoding]
        self._pace.observe(sum(len(chunk.token_ids) for chunk in prompts), seconds)

    def retire(self, sequence: Sequence) -> None:
        """Take a finished sequence out and let its cells serve later prompts."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        cells = sequence.cells
        if self._prefixes is not None:
            self._prefixes.insert(cells.token_ids, cells.cells)
        cells.release()

    def _shares(self) -> list[tuple[Sequence, int]]:
        """How many tokens of which sequence the next step should compute."""
        decoding: list[Sequence] = []
        prefilling: list[Sequence] = []
        for sequence in self.running:
            (decoding if sequence.is_decoding else prefilling).append(sequence)
        shares = [(sequence, 1) for sequence in decoding[: self._batch_size]]
        shares += prompt_shares(prefilling, self._pace.share(len(decoding)))
        return list(_with_room_for_scores(shares))

    def _admit(self) -> None:
        """Let waiting sequences in while there is room for all they have to compute."""
        for sequence in list(self.waiting):
            if len(self.running) >= self._max_sequences:
                return
            if self._is_worth_waiting(sequence):
                continue
            self._reuse_prefix(sequence)
            if self.running and not self._make_room(sequence.num_pending):
                sequence.cells.release()
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _is_worth_waiting(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute what this one can share."""
        if self._prefixes is None or sequence.is_scoring:
            return False
        return any(
            common_prefix(other.token_ids, sequence.token_ids) - other.cells.length >= WORTH_WAITING
            for other in self.running
            if other.num_pending > WORTH_WAITING
        )

    def _make_room(self, count: int) -> bool:
        if self._prefixes is not None:
            self._prefixes.free_cells(count)
        return self._pool.num_free >= count

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Start the sequence with what is cached of it, and choose where the rest will lie."""
        tokens, cells = sequence.token_ids, np.empty(0, np.int64)
        if self._prefixes is not None and not sequence.is_scoring:  # else all must be computed
            cells = self._longest_prefix(tokens, self._prefixes)
        if not len(cells) or not self._pool.is_open(int(cells[-1]) + 1):
            if self._prefixes is not None:
                self._prefixes.make_run(_expected_length(sequence, SURE_ANSWER))
            if len(cells):
                cells = self._copied(cells, sequence)
        sequence.cells.append(tokens[: len(cells)], cells)
        sequence.cells.reserve(_expected_length(sequence))
        sequence.num_cached_tokens = min(len(cells), sequence.num_prompt_tokens)

    def _longest_prefix(self, tokens: Int32Array, prefixes: PrefixIndex) -> Int64Array:
        """Cells of what is stored of `tokens`, or computed by a running sequence; now shared."""
        limit = len(tokens) - 1  # one token must be computed
        cells = prefixes.find(tokens, limit)
        for other in self.running:
            common = min(common_prefix(other.cells.token_ids, tokens), limit)
            if common > len(cells):
                self._pool.release(cells)
                cells = other.cells.cells[:common].copy()
                self._pool.retain(cells)
        return cells

    def _copied(self, cells: Int64Array, sequence: Sequence) -> Int64Array:
        """A copy of a prefix that others continue, where this sequence has room of its own.

        Sharing would be right as well, but attention would scan everything between the prefix and
        the sequence's own cells; copying costs microseconds per cell. If there is no room, share.
        """
        first, stop = self._pool.reserve(_expected_length(sequence))
        target = self._pool.allocate(len(cells), first) if stop - first >= len(cells) else None
        self._pool.unreserve(first, stop)
        if target is None:
            return cells
        self._copy_cells(cells, target)
        self._pool.release(cells)
        return target

    def _cells_for(self, sequence: Sequence, count: int, chunks: list[Chunk]) -> Int64Array | None:
        """Cells for `count` tokens, at others' cost if need be; None: not in this step."""
        while (cells := sequence.cells.allocate(count)) is None:
            if self._prefixes is not None and len(self._prefixes):
                self._prefixes.free_cells(count)
                continue
            scheduled = [chunk.sequence for chunk in chunks]
            victim = next((s for s in reversed(self.running) if s not in scheduled), None)
            if victim is sequence and not scheduled:
                sequence.finish(FinishReason.CONTEXT)  # alone, and the cache is too small
                return None
            if victim is None or victim is sequence:
                return None  # it waits until others have finished
            self._preempt(victim)
        return cells

    def _preempt(self, sequence: Sequence) -> None:
        sequence.cells.release()
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)


def prompt_shares(prompts: list[Sequence], num_tokens: int) -> list[tuple[Sequence, int]]:
    """Share out a step's prompt tokens: half of them for the oldest, the rest to the shortest.

    Args:
        prompts: sequences with something to compute, in order of arrival.
        num_tokens: to share out, at least 0.

    Returns:
        each sequence that gets any, and how many tokens.
    """
    if not prompts:
        return []
    shares = {prompts[0]: min(prompts[0].num_pending, -(-num_tokens // 2))}
    rest = num_tokens - shares[prompts[0]]
    for sequence in sorted(prompts, key=lambda prompt: prompt.num_pending):
        share = shares.get(sequence, 0)
        more = min(rest, sequence.num_pending - share)
        shares[sequence] = share + more
        rest -= more
    return [(sequence, share) for sequence, share in shares.items() if share]


def _with_room_for_scores(shares: list[tuple[Sequence, int]]) -> Iterator[tuple[Sequence, int]]:
    """The shares, those of prompts that are scored cut down to MAX_ROWS in all."""
    room = MAX_ROWS
    for sequence, count in shares:
        if sequence.is_scoring:
            count = min(count, room)
            room -= count
        if count:
            yield sequence, count


def _expected_length(sequence: Sequence, longest_answer: int = 4 * USUAL_ANSWER) -> int:
    """Tokens the sequence may come to: what it is given, and an answer of the usual length."""
    answer = sequence.params.max_tokens
    answer = USUAL_ANSWER if answer is None else answer
    return len(sequence.token_ids) + min(answer, longest_answer)


def _take(sequence: Sequence, cells: Int64Array) -> Chunk:
    start = sequence.cells.length
    return Chunk(sequence, sequence.token_ids[start : start + len(cells)], cells)
