"""A model folder of a workspace: one model's description, vocabulary, weights and NPU files.

<model>/model.json  vocab.gguf  ggml/weights.gguf  qnn/config.json  qnn/*.bin  qnn/kv/*.raw
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

from powerserve.core.errors import ConfigError, ModelNotFoundError
from powerserve.storage.json_file import read_json

MODEL_FILE = "model.json"
VOCAB_FILE = "vocab.gguf"
WEIGHTS_FILE = "ggml/weights.gguf"
QNN_FOLDER = "qnn"


@dataclass(frozen=True, slots=True)
class _Identity:
    model_id: str = ""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The places inside a model folder; nothing is read until asked for."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's own name, by which a workspace and a server know the model."""
        return Path(os.path.abspath(self.path)).name  # not resolve(): a link's name is the name

    @property
    def model_json(self) -> Path:
        """Sizes and switches of the model."""
        return self.path / MODEL_FILE

    @property
    def weights(self) -> Path:
        """The GGUF file with tensors. An NPU model has one too, if only for its embeddings."""
        return self.path / WEIGHTS_FILE

    @property
    def vocab(self) -> Path:
        """The GGUF file with the tokenizer: vocab.gguf, else the weights, which may hold one."""
        vocab = self.path / VOCAB_FILE
        return vocab if vocab.is_file() else self.weights

    @property
    def npu_files(self) -> Path:
        """The `qnn` folder: graphs compiled for an NPU."""
        return self.path / QNN_FOLDER

    @property
    def has_npu_files(self) -> bool:
        """Whether there is a `qnn` folder."""
        return self.npu_files.is_dir()

    def model_id(self) -> str:
        """The id that tells models apart in one process. Raises ConfigError."""
        model_id = read_json(self.model_json, _Identity).model_id
        if not model_id:
            raise ConfigError(f"{self.model_json}: the key `model_id` is missing or empty")
        return model_id

    def require_weights(self) -> None:
        """Check that the model can be loaded. Raises ModelNotFoundError saying what is missing."""
        if self.weights.is_file():
            return
        if self.has_npu_files:
            raise ModelNotFoundError(
                f"the model folder {self.path} has NPU files but no {WEIGHTS_FILE}, "
                "from which the token embeddings are read on the NPU too"
            )
        raise ModelNotFoundError(f"the model folder {self.path} has no {WEIGHTS_FILE}")


def is_model_folder(path: Path) -> bool:
    """Whether the folder looks like a model: it has a model.json or weights."""
    return isfile(path / MODEL_FILE) or isfile(path / WEIGHTS_FILE)
