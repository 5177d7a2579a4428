"""Models split over several GGUF files, as llama.cpp's `gguf-split` writes them.

Shards are named `<stem>-00001-of-00003.gguf`. The first holds the metadata; each says which it is
(`split.no`, from zero), how many there are (`split.count`) and how many tensors they hold together
(`split.tensors.count`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from powerserve.core.errors import ModelFileError
from powerserve.storage.gguf_header import Contents, read_contents
from powerserve.storage.gguf_tensors import TensorInfo
from powerserve.storage.gguf_values import MetadataValue

_SHARD_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


def num_shards(metadata: Mapping[str, MetadataValue]) -> int:
    """How many files the model with this metadata is split over; 1 if it is whole."""
    count = metadata.get("split.count", 0)
    return count if isinstance(count, int) and count > 1 else 1


def read_shards(path: Path, opened: Contents) -> Contents:
    """Metadata and tensors of the whole model of which `path`, read as `opened`, is one shard.

    Raises ModelFileError if a shard is missing, misnamed or belongs to another model.
    """
    count = num_shards(opened.metadata)
    paths = shard_paths(path, count)
    shards = [opened if each == path else read_contents(each) for each in paths]
    for index, (each, shard) in enumerate(zip(paths, shards, strict=True)):
        _check_place(each, shard, index, count)
    tensors = _merge(paths, shards)
    expected = shards[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise ModelFileError(
            f"{path}: the {count} parts hold {len(tensors)} tensors instead of {expected}; "
            "fetch them again from one place"
        )
    return Contents(shards[0].metadata, tensors)


def shard_paths(path: Path, count: int) -> list[Path]:
    """The paths of all `count` shards, given that of one; all must exist."""
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{path}: this is one of {count} parts of a model; their names must end in "
            f"-00001-of-{count:05d}.gguf and so on, as they were published"
        )
    paths = [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    for number, each in enumerate(paths, start=1):
        if not each.exists():
            raise ModelFileError(
                f"{each} is missing: it is part {number} of {count} of the model, "
                "put it into the same folder"
            )
    return paths


def _check_place(path: Path, shard: Contents, index: int, count: int) -> None:
    found = (shard.metadata.get("split.no"), shard.metadata.get("split.count"))
    if found != (index, count):
        raise ModelFileError(
            f"{path}: the file does not say that it is part {index + 1} of {count} of a model; "
            "it was renamed or belongs to another model"
        )


def _merge(paths: list[Path], shards: list[Contents]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path, shard in zip(paths, shards, strict=True):
        twice = tensors.keys() & shard.tensors.keys()
        if twice:
            raise ModelFileError(
                f"{path}: tensor {min(twice)} is in another part already; "
                "fetch the parts again from one place"
            )
        tensors |= shard.tensors
    return tensors
