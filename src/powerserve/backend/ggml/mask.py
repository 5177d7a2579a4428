"""A batch's visibility as ggml's attention mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, BatchSlice, Int32Array, Int64Array

HIDDEN = np.uint16(0xFC00)  # -inf in float16; written as integers, which numpy fills faster
VISIBLE = np.uint16(0)


def write_mask(mask: npt.NDArray[np.uint16], batch: Batch) -> None:
    """Fill mask [padded tokens, cells]; rows beyond the batch repeat its last row."""
    for piece in batch.slices:
        stop = piece.start + len(piece.parents)
        rows = mask[piece.start : stop]
        rows[0] = HIDDEN
        rows[0, piece.context] = VISIBLE
        rows[1:] = rows[0]
        _reveal_batch(rows, batch.cells[piece.start : stop], piece)
    num_tokens = len(batch.token_ids)
    mask[num_tokens:] = mask[num_tokens - 1]


def _reveal_batch(rows: npt.NDArray[np.uint16], cells: Int64Array, piece: BatchSlice) -> None:
    """Let each token of the slice see itself and its ancestors."""
    if len(cells) == 1:
        rows[0, cells[0]] = VISIBLE
    elif piece.is_chain:
        _reveal_chain(rows, cells)
    else:
        visible = ancestors(piece.parents)
        rows[:, cells] = np.where(visible, VISIBLE, HIDDEN)


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
