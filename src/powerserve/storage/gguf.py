"""GGUF model files: metadata and tensors, mapped into memory and checked before use."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType, TracebackType

from powerserve.storage.gguf_header import read_contents
from powerserve.storage.gguf_split import num_shards, read_shards
from powerserve.storage.gguf_strings import StringArray
from powerserve.storage.gguf_tensors import TensorInfo
from powerserve.storage.gguf_values import MetadataValue

__all__ = ["GGUFFile", "MetadataValue", "StringArray", "TensorInfo"]


class GGUFFile:
    """An open model: one GGUF file, or all shards of a split one presented as one.

    Attributes:
        path: the file that was asked for.
        metadata: values by key. Strings are `str`; string arrays are decoded when read
            (`StringArray`); arrays of numbers are read-only numpy views.
        tensors: by name, in the order of the file.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, MetadataValue], tensors: dict[str, TensorInfo]
    ) -> None:
        self.path = path
        self.metadata: Mapping[str, MetadataValue] = MappingProxyType(dict(metadata))
        self.tensors = tensors

    @classmethod
    def open(cls, path: str | PathLike[str]) -> GGUFFile:
        """Open the GGUF file at `path`; for a shard of a split model, the whole model.

        Raises ModelNotFoundError if there is no such file, ModelFileError if it or another shard
        is missing, unreadable or damaged, UnsupportedModelError for a GGUF version or element type
        that is not known.
        """
        path = Path(path)
        contents = read_contents(path)
        if num_shards(contents.metadata) > 1:
            contents = read_shards(path, contents)
        return cls(path, contents.metadata, contents.tensors)

    def close(self) -> None:
        """Let go of the file. Memory that arrays taken from it still use stays mapped until then.

        After this, `metadata` and `tensors` are empty.
        """
        self.metadata = MappingProxyType({})
        self.tensors = {}

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
