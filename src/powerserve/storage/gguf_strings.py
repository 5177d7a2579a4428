"""String arrays of a GGUF file: found at once, decoded only when read.

A vocabulary and its merges are 300,000 strings that stand before everything else in the file, each
with its length in front, so they must be hopped over before the first tensor is known. Doing that
string by string is the slowest part of opening a file; docs/decisions/gguf-reader.md has figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from mmap import mmap
from struct import Struct
from typing import overload

import numpy as np
import numpy.typing as npt

from powerserve.core.errors import ModelFileError

LENGTH = Struct("<Q")  # bytes of the string that follows

_WINDOW_BYTES = 1 << 18  # looked at in one leap; measured: 64 KiB to 1 MiB are alike
_SHORT_BYTES = 1 << 16  # a length field below this has six zero bytes, which text has not
_FEW_STRINGS = 1024  # a leap that found fewer was not worth its cost,
_WALK_STRINGS = 4096  # so that these many are hopped over one by one before the next

Offsets = npt.NDArray[np.int64]


class StringArray(Sequence[str]):
    """The strings of one metadata array, decoded when asked for.

    Raises ModelFileError, on access, for a string that is not UTF-8.
    """

    def __init__(self, buffer: mmap, offsets: Offsets, where: str) -> None:
        """`offsets` [n + 1]: each string's length field, then the end; `where` names the array."""
        self._buffer = buffer
        self._offsets = offsets
        self._where = where

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._decode(i) for i in range(len(self))[index]]
        return self._decode(range(len(self))[index])

    def __iter__(self) -> Iterator[str]:
        first = int(self._offsets[0])
        content = self._buffer[first : int(self._offsets[-1])]
        starts = (self._offsets[:-1] + (LENGTH.size - first)).tolist()
        ends = (self._offsets[1:] - first).tolist()
        try:
            for start, end in zip(starts, ends, strict=True):
                yield content[start:end].decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(starts.index(start)) from error

    def __repr__(self) -> str:
        return f"<{len(self)} strings of {self._where}>"

    def _decode(self, index: int) -> str:
        start, end = int(self._offsets[index]) + LENGTH.size, int(self._offsets[index + 1])
        try:
            return self._buffer[start:end].decode()
        except UnicodeDecodeError as error:
            raise self._not_utf8(index) from error

    def _not_utf8(self, index: int) -> ModelFileError:
        return ModelFileError(f"{self._where}: string {index} is not UTF-8, the file is damaged")


def string_offsets(buffer: mmap, start: int, count: int) -> Offsets | None:
    """Where each of `count` strings from byte `start` begins, and where the last ends: [count + 1].

    None if they do not fit into the buffer. `count` must be sane already: the result is allocated.
    """
    offsets = np.empty(count + 1, np.int64)
    offsets[0] = start
    done = 0
    while done < count:
        leapt = _leap(buffer, offsets, done)
        done += leapt
        if leapt < _FEW_STRINGS:
            walked = _walk(buffer, offsets, done)
            if walked is None:
                return None
            done += walked
    return offsets if offsets[count] <= len(buffer) else None


def _leap(buffer: mmap, offsets: Offsets, done: int) -> int:
    """Find many strings after `offsets[done]` at once; the number found, maybe none.

    Guesses where length fields are, then keeps those where each leads exactly to the next. As the
    first is certain, so are they all.
    """
    position = int(offsets[done])
    size = min(_WINDOW_BYTES, len(buffer) - position)
    if size < LENGTH.size:
        return 0
    # Every byte of the window read as if a length began there.
    lengths = np.ndarray((size - LENGTH.size + 1,), "<u8", buffer, position, (1,))
    guesses = np.flatnonzero(lengths < _SHORT_BYTES)
    # The byte before a field looks like one too when the length is below 256: take the later.
    guesses = guesses[np.diff(guesses, append=0) != 1]
    if not len(guesses) or guesses[0] != 0:
        return 0
    ends = guesses + LENGTH.size + lengths[guesses].astype(np.int64)
    wrong = np.flatnonzero(ends[:-1] != guesses[1:])
    found = int(wrong[0]) + 1 if len(wrong) else len(guesses)
    found = min(found, len(offsets) - 1 - done)
    offsets[done + 1 : done + 1 + found] = position + ends[:found]
    return found


def _walk(buffer: mmap, offsets: Offsets, done: int) -> int | None:
    """Hop over some strings one by one; their number, or None past the buffer's end."""
    position = int(offsets[done])
    number = min(_WALK_STRINGS, len(offsets) - 1 - done)
    for index in range(done + 1, done + 1 + number):
        if position + LENGTH.size > len(buffer):
            return None
        position += LENGTH.size + LENGTH.unpack_from(buffer, position)[0]
        if position > len(buffer):
            return None
        offsets[index] = position
    return number
