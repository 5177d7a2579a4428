"""Importance matrices as files: llama.cpp's GGUF format, and its older binary one for reading.

Source: llama.cpp's tools/imatrix/imatrix.cpp. GGUF: `general.type` is `imatrix`; for each weight
NAME two F32 tensors, `NAME.in_sum2` [matrices, columns] with sums of squares and `NAME.counts`
[matrices, 1] with the number of inputs. Binary: the number of entries, and for each the name, a
number of calls and values that are means times that number; then calls and the text's name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.convert.imatrix import ImportanceMatrix
from powerserve.core.dtypes import F32
from powerserve.core.errors import ModelFileError, ModelNotFoundError
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors
from powerserve.storage.gguf import GGUFFile, StringArray
from powerserve.storage.gguf_header import MAGIC
from powerserve.storage.gguf_writer import (
    TensorHeader,
    string_value,
    strings_value,
    uint32_value,
    write_gguf,
)

SUMS, COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES = 1 << 17
_MAX_NAME_BYTES = 1 << 10
_MAX_VALUES = 1 << 28
_INT = struct.Struct("<i")


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums of squares of the inputs of one weight, [matrices, columns], and how many there were."""

    squares: FloatArray
    counts: FloatArray  # [matrices]

    @property
    def means(self) -> FloatArray:
        """Mean squares; all ones for a matrix that saw no input, so that its columns are equal."""
        counts = self.counts[:, None]
        means: FloatArray = np.where(counts > 0, self.squares / np.maximum(counts, 1), 1)
        return means.astype(np.float32)


def read_imatrix(path: Path) -> ImportanceMatrix:
    """The importance matrix in a file of either format.

    Raises ModelNotFoundError if there is no such file, ModelFileError if it is something else or
    damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                file.seek(0)
                return _read_binary(file, path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    with GGUFFile.open(path) as contents:
        return _from_gguf(contents)


def write_imatrix(
    path: Path,
    sums: Mapping[str, Sums],
    *,
    num_chunks: int,
    chunk_size: int,
    datasets: Sequence[str],
    extra: Mapping[str, bytes] | None = None,
) -> None:
    """Write sums in the GGUF format; `extra` holds further metadata values.

    Raises UsageError if the file cannot be written.
    """
    metadata = {
        "general.type": string_value("imatrix"),
        "imatrix.datasets": strings_value(datasets),
        "imatrix.chunk_count": uint32_value(num_chunks),
        "imatrix.chunk_size": uint32_value(chunk_size),
        **(extra or {}),
    }
    tensors = []
    for name in sorted(sums):
        for suffix, values in ((SUMS, sums[name].squares), (COUNTS, sums[name].counts[:, None])):
            data = np.ascontiguousarray(values, np.float32)
            tensors.append((TensorHeader(name + suffix, data.shape, F32), [data.tobytes()]))
    with file_errors(f"{path} cannot be written"), atomic.new_file(path) as file:
        write_gguf(file, metadata, tensors)


def read_sums(contents: GGUFFile) -> dict[str, Sums]:
    """The sums in an open GGUF file. Raises ModelFileError if they are not complete."""
    arrays = {
        name: tensor.data.view(np.float32).reshape(tensor.shape)
        for name, tensor in contents.tensors.items()
        if tensor.dtype == F32
    }
    found = {}
    for name in (key.removesuffix(SUMS) for key in arrays if key.endswith(SUMS)):
        squares, counts = arrays[name + SUMS], arrays.get(name + COUNTS)
        if counts is None or squares.size % counts.size:
            raise ModelFileError(f"{contents.path}: there are no counts for {name}")
        found[name] = Sums(squares.reshape(counts.size, -1), counts.reshape(-1))
    return found


def _from_gguf(contents: GGUFFile) -> ImportanceMatrix:
    if contents.metadata.get("general.type") != "imatrix":
        raise ModelFileError(f"{contents.path} is not an importance matrix")
    num_chunks = contents.metadata.get("imatrix.chunk_count", 0)
    datasets = contents.metadata.get("imatrix.datasets", ())
    return ImportanceMatrix(
        {name: sums.means for name, sums in read_sums(contents).items()},
        num_chunks if isinstance(num_chunks, int) else 0,
        tuple(datasets) if isinstance(datasets, StringArray) else (),
        contents.path,
    )


def _read_binary(file: BinaryIO, path: Path) -> ImportanceMatrix:
    reader = _BinaryReader(file, path)
    means = dict(reader.entry() for _ in range(reader.number(_MAX_ENTRIES)))
    num_chunks, dataset = reader.ending()
    return ImportanceMatrix(means, num_chunks, dataset, path)


class _BinaryReader:
    """Reads the older format, which has no signature: whatever makes no sense is not one."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = os.fstat(file.fileno()).st_size

    def number(self, limit: int) -> int:
        number: int = _INT.unpack(self._take(_INT.size))[0]
        if not 0 < number <= limit:
            raise self._damaged()
        return number

    def entry(self) -> tuple[str, FloatArray]:
        try:
            name = self._take(self.number(_MAX_NAME_BYTES)).decode()
        except UnicodeDecodeError:
            raise self._damaged() from None
        num_calls = _INT.unpack(self._take(_INT.size))[0]
        num_values = self.number(_MAX_VALUES)
        values = np.frombuffer(self._take(4 * num_values), np.float32)
        return name, (values / max(num_calls, 1)).reshape(1, -1)

    def ending(self) -> tuple[int, tuple[str, ...]]:
        """Calls and the text's name, which the oldest files lack."""
        rest = self._file.read(2 * _INT.size + _MAX_NAME_BYTES)
        if len(rest) < 2 * _INT.size:
            return 0, ()
        num_calls, length = struct.unpack_from("<ii", rest)
        name = rest[2 * _INT.size :][: max(length, 0)]
        return max(num_calls, 0), (name.decode(errors="replace"),)

    def _take(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise self._damaged()
        return self._file.read(size)

    def _damaged(self) -> ModelFileError:
        return ModelFileError(f"{self._path} is not an importance matrix, or it is damaged")
