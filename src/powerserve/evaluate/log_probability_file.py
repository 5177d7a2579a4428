"""A model's predictions for a text as a file, to compare other models with.

Source: llama.cpp's tools/perplexity (`--kl-divergence-base`). After the signature come window size,
vocabulary size and number of windows (int32), the tokens (int32), and a row for each prediction of
the second half of a window: scale and least log-probability (float32), then a code of 16 bits for
each token; scale · code + least is its log-probability. What is more than 16 nats below the best
has code 0. Rows are padded to an even number of codes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.core.errors import ModelFileError, ModelNotFoundError
from powerserve.evaluate.divergence import ROWS_AT_ONCE
from powerserve.evaluate.perplexity import predictions_per_window

SIGNATURE = b"_logits_"
RANGE = 16.0  # nats below the best token that are told apart
FLOOR = -RANGE  # log-probabilities up to this are left out of comparisons
_SIZES = struct.Struct("<iii")
_MAX_CODE = 65535
_HEAD_CODES = 4  # the space of two floats

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class LogProbabilityFile:
    """An open file.

    Attributes:
        windows: int32 [n, window], the text.
        vocab_size: tokens of the vocabulary.
        rows: uint16 [predictions, codes], mapped into memory.
    """

    path: Path
    windows: Int32Array
    vocab_size: int
    rows: Codes

    def log_probabilities(self, first: int, count: int) -> FloatArray:
        """Predictions first … first + count as [count, vocab]; those near FLOOR are only bounds."""
        return decode_rows(self.rows[first : first + count], self.vocab_size)


def open_log_probabilities(path: Path) -> LogProbabilityFile:
    """Open the file at `path`.

    Raises ModelNotFoundError if there is none, ModelFileError if it is something else or cut off.
    """
    try:
        with path.open("rb") as file:
            header = file.read(len(SIGNATURE) + _SIZES.size)
            size = path.stat().st_size
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(header) < len(SIGNATURE) + _SIZES.size or not header.startswith(SIGNATURE):
        raise ModelFileError(f"{path} holds no log-probabilities of a model")
    window, vocab_size, num_windows = _SIZES.unpack_from(header, len(SIGNATURE))
    if window < 2 or vocab_size < 1 or num_windows < 1:
        raise ModelFileError(f"{path} is damaged: its header makes no sense")
    shape = (num_windows * predictions_per_window(window), _row_codes(vocab_size))
    rows_at = len(header) + 4 * window * num_windows
    if size < rows_at + 2 * shape[0] * shape[1]:
        raise ModelFileError(f"{path} is cut off: make it again")
    tokens = np.fromfile(path, np.int32, window * num_windows, offset=len(header))
    rows = np.memmap(path, np.uint16, "r", rows_at, shape)
    return LogProbabilityFile(path, tokens.reshape(num_windows, window), vocab_size, rows)


def write_log_probabilities(
    file: BinaryIO, windows: Int32Array, vocab_size: int, logits: Iterable[FloatArray]
) -> Iterator[int]:
    """Write a file from the logits [n, vocab] of all its predictions, which come in pieces.

    Yields the predictions written so far after each piece.
    """
    num_windows, window = windows.shape
    file.write(SIGNATURE + _SIZES.pack(window, vocab_size, num_windows) + windows.tobytes())
    written = 0
    for piece in logits:
        for first in range(0, len(piece), ROWS_AT_ONCE):
            file.write(encode_rows(piece[first : first + ROWS_AT_ONCE]).tobytes())
        written += len(piece)
        yield written


def encode_rows(logits: FloatArray) -> Codes:
    """Logits [n, vocab] as rows of the file."""
    best = logits.max(axis=1, keepdims=True)
    least = np.maximum(logits.min(axis=1, keepdims=True), best - np.float32(RANGE))
    total = np.exp(logits - best).sum(axis=1, keepdims=True, dtype=np.float64)
    scale = (best - least) / np.float32(_MAX_CODE)
    rows = np.zeros((len(logits), _row_codes(logits.shape[1])), np.uint16)
    head = np.concatenate([scale, least - best - np.log(total).astype(np.float32)], axis=1)
    rows[:, :_HEAD_CODES] = np.ascontiguousarray(head, np.float32).view(np.uint16)
    steps = np.divide(logits - least, scale, out=np.zeros_like(logits), where=scale > 0)
    rows[:, _HEAD_CODES : _HEAD_CODES + logits.shape[1]] = np.rint(steps).clip(0, _MAX_CODE)
    return rows


def decode_rows(rows: Codes, vocab_size: int) -> FloatArray:
    """The log-probabilities [n, vocab] in rows of the file."""
    head = np.ascontiguousarray(rows[:, :_HEAD_CODES]).view(np.float32)
    codes = rows[:, _HEAD_CODES : _HEAD_CODES + vocab_size].astype(np.float32)
    values: FloatArray = head[:, :1] * codes + head[:, 1:]
    return values


def _row_codes(vocab_size: int) -> int:
    return 2 * ((vocab_size + 1) // 2) + _HEAD_CODES
