"""Tokens of several sequences as one batch for the backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import Batch, BatchSlice, Int32Array, Int64Array
from powerserve.cache.sequence import SequenceCells, cell_range

ONE_TOKEN = np.array([-1], np.int32)  # the parents of a single token


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Tokens of one sequence for the next step.

    `parents`, `cached_ancestors`: see BatchSlice. `output_rows` count from the piece's first token.
    """

    sequence: SequenceCells
    token_ids: Int32Array
    positions: Int32Array
    cells: Int64Array
    parents: Int32Array
    output_rows: Int32Array
    cached_ancestors: Int64Array | None = None


def chain(length: int) -> Int32Array:
    """The parents of tokens that follow one another."""
    return ONE_TOKEN if length == 1 else np.arange(-1, length - 1, dtype=np.int32)


def build_batch(pieces: Sequence[Piece]) -> Batch:
    """Lay pieces one after another; at least one token's logits are computed in any case."""
    if len(pieces) == 1:
        return _single(pieces[0])
    slices: list[BatchSlice] = []
    output_rows: list[Int32Array] = []
    start = 0
    for piece in pieces:
        slices.append(_slice(piece, start))
        output_rows.append(piece.output_rows + np.int32(start))
        start += len(piece.token_ids)
    return Batch(
        token_ids=np.concatenate([piece.token_ids for piece in pieces]),
        positions=np.concatenate([piece.positions for piece in pieces]),
        cells=np.concatenate([piece.cells for piece in pieces]),
        slices=slices,
        output_rows=_at_least_one(np.concatenate(output_rows), start),
    )


def _single(piece: Piece) -> Batch:
    """One sequence alone needs no joining: this runs for every token of a lone user."""
    return Batch(
        token_ids=piece.token_ids,
        positions=piece.positions,
        cells=piece.cells,
        slices=(_slice(piece, 0),),
        output_rows=_at_least_one(piece.output_rows, len(piece.token_ids)),
    )


def _at_least_one(output_rows: Int32Array, num_tokens: int) -> Int32Array:
    return output_rows if len(output_rows) else np.array([num_tokens - 1], np.int32)


def _slice(piece: Piece, start: int) -> BatchSlice:
    cached, ancestors = piece.sequence, piece.cached_ancestors
    first, highest = cell_range(piece.cells)
    stop = highest + 1
    if cached.length:
        first, stop = min(first, cached.first_cell), max(stop, cached.stop_cell)
    if ancestors is not None and (earlier := ancestors[ancestors >= 0]).size:
        first, stop = min(first, int(earlier.min())), max(stop, int(earlier.max()) + 1)
    return BatchSlice(start, cached.cells, piece.parents, first, stop, ancestors)
