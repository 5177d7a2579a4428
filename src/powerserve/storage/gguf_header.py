"""One GGUF file: what it is, its metadata and its tensors.

Source: the GGUF specification, versions 2 and 3 (ggml/docs/gguf.md). The parser is our own because
nothing unchecked may reach native code; docs/decisions/gguf-reader.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from powerserve.core.errors import ModelFileError, ModelNotFoundError, UnsupportedModelError
from powerserve.storage.gguf_tensors import MIN_ENTRY_BYTES, TensorInfo, read_tensors
from powerserve.storage.gguf_values import Cursor, MetadataValue

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32  # bytes
MAX_ALIGNMENT = 1 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_KEY_BYTES = 1024  # the specification allows 65535, nobody needs 100
_MIN_KEY_BYTES = 14  # key of one byte, value type, value of one byte

# How files begin that people mistake for models, and what to tell them.
_FOREIGN = {
    b"GGML": "an old GGML file; convert the model to GGUF again",
    b"lmgg": "an old GGML file; convert the model to GGUF again",
    b"tjgg": "an old GGML file; convert the model to GGUF again",
    b"FUGG": "a big-endian GGUF file; fetch the little-endian one",
    b"PK\x03\x04": "a zip or PyTorch file; convert the model to GGUF",
    b"version https://git-lfs": "a Git LFS pointer, not the model itself; run `git lfs pull`",
    b"<": "a web page; the download link was wrong",
}


@dataclass(frozen=True, slots=True)
class Contents:
    """What one file (of a split model: one shard) holds."""

    metadata: dict[str, MetadataValue]
    tensors: dict[str, TensorInfo]


def read_contents(path: Path) -> Contents:
    """Read and check the header of the GGUF file at `path`; tensors stay on disk, mapped.

    Raises ModelNotFoundError if there is no such file, ModelFileError if it cannot be read or is
    damaged, UnsupportedModelError for a GGUF version or element type that is not known.
    """
    cursor = Cursor(_map(path), path)
    _check_magic(cursor)
    _check_version(cursor)
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    _check_count(cursor, num_keys, "metadata keys", MAX_KEYS, _MIN_KEY_BYTES)
    _check_count(cursor, num_tensors, "tensors", MAX_TENSORS, MIN_ENTRY_BYTES)
    metadata = _read_metadata(cursor, num_keys)
    tensors = read_tensors(cursor, num_tensors, _alignment(cursor, metadata))
    return Contents(metadata, tensors)


def _map(path: Path) -> mmap:
    try:
        status = path.stat()
        if S_ISDIR(status.st_mode):
            raise ModelFileError(f"{path} is a folder: name the GGUF file in it")
        if not S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ModelFileError(f"{path} is not a regular file")
        if status.st_size == 0:
            raise ModelFileError(f"{path} is empty: the download failed, fetch it again")
        with path.open("rb") as file:
            return mmap(file.fileno(), 0, access=ACCESS_READ)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"{path} does not exist") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the name, or a file emptied just now
        raise ModelFileError(f"{str(path)!r} cannot be read: {error}") from error


def _check_magic(cursor: Cursor) -> None:
    start = cursor.buffer[:32]
    if start.startswith(MAGIC):
        cursor.position = len(MAGIC)
        return
    for beginning, what in _FOREIGN.items():
        if start.lower().startswith(beginning.lower()):
            raise cursor.error(f"this is {what}")
    raise cursor.error("this is not a GGUF file")


def _check_version(cursor: Cursor) -> None:
    version = cursor.u32()
    if version in (2, 3):
        return
    if version & 0xFFFF == 0 and version:
        raise cursor.error("this is a big-endian GGUF file; fetch the little-endian one")
    raise UnsupportedModelError(
        f"{cursor.path}: this is GGUF version {version}; versions 2 and 3 are supported, "
        "convert the model again"
    )


def _check_count(cursor: Cursor, count: int, what: str, limit: int, min_bytes: int) -> None:
    if count > limit:
        raise cursor.error(f"the file claims {count} {what}: it is damaged, fetch it again")
    if count * min_bytes > cursor.remaining:
        raise cursor.truncated()


def _read_metadata(cursor: Cursor, count: int) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue] = {}
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_KEY_BYTES)
        if not key.isprintable():  # it will appear in messages
            raise cursor.error("a metadata key is not a name: the file is damaged")
        if key in metadata:
            raise cursor.error(f"the key {key!r} appears twice: the file is damaged")
        metadata[key] = cursor.value(key)
    return metadata


def _alignment(cursor: Cursor, metadata: dict[str, MetadataValue]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if (
        not isinstance(alignment, int)
        or not 8 <= alignment <= MAX_ALIGNMENT
        or alignment & (alignment - 1)
    ):
        raise cursor.error(
            f"general.alignment is {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}: "
            "the file is damaged"
        )
    return alignment
