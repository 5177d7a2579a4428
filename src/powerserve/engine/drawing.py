"""What a step's logits mean for its sequences: tokens are drawn, and trees followed."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.backend.base import FloatArray
from powerserve.cache.sequence import CopyCells
from powerserve.core.errors import PowerServeError
from powerserve.engine.scheduler import Chunk
from powerserve.engine.sequence import FinishReason, Sequence
from powerserve.engine.speculation import TreeDecoding
from powerserve.sampler.chain import Sampled
from powerserve.speculative.tree import FlatTree


@dataclass(frozen=True, slots=True, eq=False)
class TokenEvent:
    """A sequence got a token, or ended without one (`sampled` is None), perhaps by an error."""

    sequence: Sequence
    sampled: Sampled | None
    finish_reason: FinishReason | None  # set with the sequence's last event
    error: PowerServeError | None = None


class Drawing:
    """Brings sequences forward by what a step has computed for them."""

    def __init__(self, copy_cells: CopyCells, trees: TreeDecoding | None) -> None:
        """`trees`: told what became of candidates; None without speculation."""
        self._copy_cells = copy_cells
        self._trees = trees

    def events(self, chunks: list[Chunk], logits: FloatArray) -> list[TokenEvent]:
        """Note what was computed, and draw tokens for each sequence that is complete."""
        events: list[TokenEvent] = []
        start = 0
        for chunk in chunks:
            stop = start + chunk.num_outputs
            if chunk.tree is not None:
                events += self._follow(chunk, chunk.tree, logits[start:stop])
            else:
                events += self._proceed(chunk, logits[start:stop])
            start = stop
        return events

    def _proceed(self, chunk: Chunk, logits: FloatArray) -> list[TokenEvent]:
        """Note a chunk that is no tree, and draw if it was the last one before a token."""
        sequence, completes = chunk.sequence, chunk.completes
        if sequence.prompt_scores is not None and sequence.is_scoring:
            sequence.prompt_scores.add(sequence.cells.length, logits)
        sequence.cells.append(chunk.token_ids, chunk.cells)
        if not completes:
            return []
        if not sequence.num_remaining:  # only the scores were wanted
            sequence.finish(FinishReason.LENGTH)
            return []
        return [self._next(chunk, logits[-1])]

    def _next(self, chunk: Chunk, logits: FloatArray) -> TokenEvent:
        """The token after a chunk that is no tree."""
        event = _draw(chunk.sequence, logits)
        if self._trees is not None and event.sampled is not None:
            self._trees.settle(chunk, [0], [event.sampled.token_id])
        return event

    def _follow(self, chunk: Chunk, tree: FlatTree, logits: FloatArray) -> list[TokenEvent]:
        """Verify a tree: draw after the root, and go on while a candidate is what was drawn.

        Each token comes from the sequence's own sampler, after the tokens before it, so the answer
        has the distribution it has without candidates.
        """
        sequence, rows = chunk.sequence, [0]
        events = [_draw(sequence, logits[0])]
        while (sampled := events[-1].sampled) is not None and sequence.finish_reason is None:
            row = tree.child_row(rows[-1], sampled.token_id)
            if row is None:
                break
            rows.append(row)
            events.append(_draw(sequence, logits[row]))
        kept = chunk.cells[rows]
        sequence.cells.keep(chunk.token_ids[rows], kept, chunk.cells, self._copy_cells)
        assert self._trees is not None
        drawn = [event.sampled.token_id for event in events if event.sampled is not None]
        self._trees.settle(chunk, rows, drawn)
        return events


def _draw(sequence: Sequence, logits: FloatArray) -> TokenEvent:
    """Sample one sequence; what goes wrong with it must not stop the others."""
    try:
        sampled = sequence.sampler.sample(logits)
    except PowerServeError as error:
        sequence.finish(FinishReason.ERROR)
        return TokenEvent(sequence, None, sequence.finish_reason, error)
    sequence.accept(sampled)
    return TokenEvent(sequence, sampled, sequence.finish_reason)
