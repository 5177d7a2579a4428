"""Token trees in the engine's steps: candidates join a decoding sequence's chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from powerserve.cache.cells import CellPool
from powerserve.engine.scheduler import Chunk
from powerserve.engine.sequence import Sequence
from powerserve.speculative.speculator import Speculator
from powerserve.speculative.state import ProposalRequest, SequenceSpeculation
from powerserve.speculative.tree import FlatTree

USUAL_REST = 64  # tokens that an answer is expected to go on for at least


class TreeDecoding:
    """Adds trees to chunks before a step and reports what came of them after it."""

    def __init__(self, speculator: Speculator, pool: CellPool, batch_size: int) -> None:
        """`batch_size`: tokens of a step."""
        self._speculator = speculator
        self._pool = pool
        self._batch_size = batch_size

    def extend(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks with trees where they pay. Steps with a part of a prompt stay as they are:
        they use the machine well as it is, and would only take longer."""
        if not all(chunk.sequence.is_decoding for chunk in chunks):
            return chunks
        flats = self._speculator.propose([self._request(chunk.sequence) for chunk in chunks])
        budget = self._batch_size - len(chunks)
        extended: list[Chunk] = []
        for chunk, flat in zip(chunks, flats, strict=True):
            if flat is not None and len(flat) - 1 <= budget:
                chunk = self._with_tree(chunk, flat)
                budget -= len(chunk.cells) - 1
            if flat is not None and chunk.tree is None:
                self._speculator.discard(self._state(chunk.sequence))
            extended.append(chunk)
        return extended

    def settle(self, chunk: Chunk, rows: list[int], tokens: list[int]) -> None:
        """Report the accepted rows of a chunk and the tokens that the target chose after them."""
        if chunk.sequence.speculation is not None:
            self._speculator.settle(chunk.sequence.speculation, chunk.tree, rows, tokens)

    def observe_step(self, chunks: list[Chunk], seconds: float) -> None:
        """Report how long a step took, if it had no part of a prompt."""
        if all(chunk.tree is not None or len(chunk.cells) == 1 for chunk in chunks):
            num_tokens = sum(len(chunk.cells) for chunk in chunks)
            num_cells = sum(chunk.sequence.cells.length for chunk in chunks) // len(chunks)
            self._speculator.observe_step(num_tokens, num_cells, seconds)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that ended."""
        if sequence.speculation is not None:
            self._speculator.release(sequence.speculation, sequence.generated_ids.tolist())

    def _state(self, sequence: Sequence) -> SequenceSpeculation:
        if sequence.speculation is None:
            sequence.speculation = self._speculator.new_state()
        return sequence.speculation

    def _request(self, sequence: Sequence) -> ProposalRequest:
        remaining = sequence.num_remaining
        return ProposalRequest(
            self._state(sequence),
            sequence.token_ids,
            max_depth=remaining - 1,
            expected_tokens=min(remaining, sequence.num_generated + USUAL_REST),
        )

    def _with_tree(self, chunk: Chunk, flat: FlatTree) -> Chunk:
        """The chunk with cells for all candidates, or as it is if there is no room for them."""
        more = self._pool.allocate(len(flat) - 1, int(chunk.cells[-1]) + 1)
        if more is None:
            return chunk
        cells = np.concatenate([chunk.cells, more])
        return replace(chunk, token_ids=flat.token_ids, cells=cells, tree=flat)
