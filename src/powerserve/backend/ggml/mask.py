"""What the tokens of a slice see, as ggml's attention mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import BatchSlice, Int32Array, Int64Array

HIDDEN = np.uint16(0xFC00)  # -inf in float16; written as integers, which numpy fills faster
VISIBLE = np.uint16(0)


def write_mask(
    mask: npt.NDArray[np.uint16], piece: BatchSlice, own_cells: Int64Array, first_cell: int
) -> None:
    """Fill mask [padded tokens, cells from first on]; rows beyond the slice repeat its last row.

    Args:
        mask: one row per token, one column per cell of the slice's range.
        piece: the slice.
        own_cells: int64 [tokens], the cells of the slice's own tokens.
        first_cell: the cell of the mask's first column.
    """
    num_tokens, context = len(own_cells), piece.context
    start = piece.first_cell - first_cell
    filled = piece.stop_cell - piece.first_cell == len(context) + num_tokens
    row = mask[0]
    row.fill(HIDDEN)
    if num_tokens == 1 and filled:  # decoding: the token sees its whole range
        row[start : start + len(context) + 1] = VISIBLE
    else:
        _reveal_context(row, piece, own_cells, first_cell)
        mask[1:num_tokens] = row
        _reveal_batch(mask[:num_tokens], own_cells - first_cell, piece)
        _reveal_ancestors(mask[:num_tokens], piece, first_cell)
    if num_tokens < len(mask):
        mask[num_tokens:] = mask[num_tokens - 1]


def _reveal_context(
    row: npt.NDArray[np.uint16], piece: BatchSlice, own_cells: Int64Array, first_cell: int
) -> None:
    stop = piece.first_cell + len(piece.context)
    filled = piece.stop_cell == stop + len(own_cells)
    if filled and own_cells.min() == stop:  # the usual case: the context, then the slice
        row[piece.first_cell - first_cell : stop - first_cell] = VISIBLE
    else:
        row[piece.context - first_cell] = VISIBLE


def _reveal_batch(rows: npt.NDArray[np.uint16], cells: Int64Array, piece: BatchSlice) -> None:
    """Let each token of the slice see itself and its ancestors."""
    if piece.is_chain:
        _reveal_chain(rows, cells)
    else:
        rows[:, cells] = np.where(ancestors(piece.parents), VISIBLE, HIDDEN)


def _reveal_ancestors(rows: npt.NDArray[np.uint16], piece: BatchSlice, first_cell: int) -> None:
    """Let each token see its ancestors from earlier steps."""
    if piece.cached_ancestors is not None:
        tokens, levels = np.nonzero(piece.cached_ancestors >= 0)
        rows[tokens, piece.cached_ancestors[tokens, levels] - first_cell] = VISIBLE


def _reveal_chain(rows: npt.NDArray[np.uint16], cells: Int64Array) -> None:
    upper = np.triu(np.full((len(cells), len(cells)), HIDDEN), k=1)
    first = int(cells[0])
    if cells[-1] - first == len(cells) - 1 and bool((np.diff(cells) == 1).all()):
        rows[:, first : first + len(cells)] = upper  # a plain block copy, the usual case
    else:
        rows[:, cells] = upper


def ancestors(parents: Int32Array) -> npt.NDArray[np.bool_]:
    """[n, n]: whether token j is token i or one of its ancestors in the slice."""
    visible = np.eye(len(parents), dtype=np.bool_)
    for token, parent in enumerate(parents):
        if parent >= 0:
            visible[token] |= visible[parent]
    return visible
