"""What goes into a workspace's model folder, wherever it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from powerserve.core.errors import UsageError
from powerserve.storage.copying import FileCopy, files_below
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.gguf_split import num_shards
from powerserve.storage.json_file import json_bytes
from powerserve.storage.model_folder import MODEL_FILE, VOCAB_FILE, WEIGHTS_FILE, ModelFolder
from powerserve.storage.vocab_file import without_tensors

HEAD_BYTES = 1 << 20
SAMPLE_BYTES = 1 << 16
NUM_SAMPLES = 64

DescribeModel = Callable[[GGUFFile, str], Mapping[str, object]]  # (file, model_id) -> model.json


@dataclass(frozen=True, slots=True)
class ModelContents:
    """A model folder to be: files to copy, and small files by place and content."""

    name: str
    model_id: str
    origin: Path
    copies: list[FileCopy]
    written: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes that the folder will take."""
        return sum(copy.size_bytes for copy in self.copies) + sum(map(len, self.written.values()))


def contents_of_folder(path: Path) -> ModelContents:
    """A copy of a model folder. Raises ConfigError if its model.json is missing or wrong."""
    folder = ModelFolder(path)
    model_id = folder.model_id()
    folder.require_weights()
    return ModelContents(folder.name, model_id, path, files_below(path))


def contents_of_gguf(path: Path, describe: DescribeModel) -> ModelContents:
    """A model folder made from one GGUF file; `describe` gives the content of its model.json.

    Raises ModelFileError and its kin for a file that is no model, UsageError for a split one.
    """
    model_id = content_id(path)
    with GGUFFile.open(path) as file:
        if (count := num_shards(file.metadata)) > 1:
            raise UsageError(
                f"{path} is split into {count} files: merge them first, "
                "with llama.cpp's `llama-gguf-split --merge`"
            )
        description = json_bytes(dict(describe(file, model_id)))
    return ModelContents(
        name=path.name.removesuffix(".gguf"),
        model_id=model_id,
        origin=path,
        copies=[FileCopy(path, PurePath(WEIGHTS_FILE), path.stat().st_size)],
        written={MODEL_FILE: description, VOCAB_FILE: without_tensors(path)},
    )


def content_id(path: Path) -> str:
    """An id (16 hexadecimal digits) that equal files share and different models do not.

    SHA-256 over the size, the first MiB and 64 evenly spread samples of 64 KiB: reading all of a
    file of many gigabytes would take longer than loading it.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(HEAD_BYTES))
        for index in range(NUM_SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * (index + 1) // NUM_SAMPLES)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
