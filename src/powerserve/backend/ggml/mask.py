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
    row = mask[0]
    row.fill(HIDDEN)
    num_tokens, context = len(own_cells), piece.context
    own_cells = own_cells - first_cell
    context_stop = piece.first_cell - first_cell + len(context)
    filled = piece.stop_cell - piece.first_cell == len(context) + num_tokens
    if filled and own_cells.min() == context_stop:  # the usual case: the context comes first
        row[piece.first_cell - first_cell : context_stop] = VISIBLE
    else:
        row[context - first_cell] = VISIBLE
    if num_tokens > 1:
        mask[1:num_tokens] = row
        _reveal_batch(mask[:num_tokens], own_cells, piece)
    else:
        row[own_cells[0]] = VISIBLE
    if num_tokens < len(mask):
        mask[num_tokens:] = mask[num_tokens - 1]


def _reveal_batch(rows: npt.NDArray[np.uint16], cells: Int64Array, piece: BatchSlice) -> None:
    """Let each token of the slice see itself and its ancestors."""
    if piece.is_chain:
        _reveal_chain(rows, cells)
    else:
        rows[:, cells] = np.where(ancestors(piece.parents), VISIBLE, HIDDEN)


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
