"""Steps for backends, written the way one thinks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import Batch, BatchSlice, SliceShape, StepShape


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sequence in one step.

    `context` are the cells they continue. By default they are a chain, each in the next position.
    """

    ids: Sequence[int]
    cells: Sequence[int]
    context: Sequence[int] = ()
    parents: Sequence[int] | None = None
    positions: Sequence[int] | None = None


def batch_of(*sequences: Tokens, output_rows: Sequence[int] | None = None) -> Batch:
    """One step over these sequences; by default every token's logits are wanted."""
    slices: list[BatchSlice] = []
    positions: list[int] = []
    for sequence in sequences:
        num_tokens, first = len(sequence.ids), len(sequence.context)
        parents = range(-1, num_tokens - 1) if sequence.parents is None else sequence.parents
        visible = [*sequence.context, *sequence.cells]
        slices.append(
            BatchSlice(
                start=len(positions),
                context=np.array(sequence.context, np.int64),
                parents=np.array(parents, np.int32),
                first_cell=min(visible),
                stop_cell=max(visible) + 1,
            )
        )
        positions += sequence.positions or range(first, first + num_tokens)
    ids = [token for sequence in sequences for token in sequence.ids]
    return Batch(
        token_ids=np.array(ids, np.int32),
        positions=np.array(positions, np.int32),
        cells=np.array([cell for sequence in sequences for cell in sequence.cells], np.int64),
        slices=slices,
        output_rows=np.array(range(len(ids)) if output_rows is None else output_rows, np.int32),
    )


def shape_of(batch: Batch, num_cells: int) -> StepShape:
    """The exact shape of a batch, every slice of which may see all `num_cells` cells."""
    slices = tuple(SliceShape(len(piece.parents), 0, num_cells) for piece in batch.slices)
    return StepShape(slices, len(batch.output_rows))


def one_slice(num_tokens: int, num_cells: int, num_outputs: int) -> StepShape:
    """A step of a single sequence."""
    return StepShape((SliceShape(num_tokens, 0, num_cells),), num_outputs)
