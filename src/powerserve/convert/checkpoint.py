"""A checkpoint in Hugging Face's layout: config.json and one or several safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from powerserve.core.errors import ConfigError, ModelFileError, ModelNotFoundError
from powerserve.storage.json_file import read_json
from powerserve.storage.safetensors import SafeTensor, read_safetensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"
_MISSING_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Index:
    """Which file holds which tensor."""

    weight_map: dict[str, str] = field(default_factory=dict)


class Checkpoint:
    """A folder with a model as it was trained; tensors are mapped when asked for."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelNotFoundError if there is no such folder."""
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise ModelNotFoundError(
                f"{folder} {what}: name the folder with {CONFIG_FILE} and the safetensors files"
            )
        self.folder = folder

    @property
    def name(self) -> str:
        """The name of the folder, or that of the repository if it lies in the hub's cache."""
        folder = self.folder.resolve()
        if folder.parent.name == "snapshots":  # models--<owner>--<name>/snapshots/<commit>
            return folder.parent.parent.name.rpartition("--")[2]
        return folder.name or "model"

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json, without the keys that are null. Raises ConfigError."""
        values = read_json(self.folder / CONFIG_FILE, dict[str, Any])
        return {key: value for key, value in values.items() if value is not None}

    @cached_property
    def tensors(self) -> Mapping[str, SafeTensor]:
        """All tensors by name.

        Raises ModelNotFoundError if a file is missing, ModelFileError if one is damaged or not
        what the index says, ConfigError for a wrong index.
        """
        if (self.folder / INDEX_FILE).is_file():
            return self._indexed()
        if (self.folder / WEIGHTS_FILE).is_file():
            return read_safetensors(self.folder / WEIGHTS_FILE)
        raise ModelNotFoundError(self._why_no_weights())

    def _indexed(self) -> dict[str, SafeTensor]:
        path = self.folder / INDEX_FILE
        places = read_json(path, _Index).weight_map
        names = sorted(set(places.values()))
        if not names:
            raise ConfigError(f"{path}: the key `weight_map` is missing or empty")
        self._check_shards(path, names)
        shards = {name: read_safetensors(self.folder / name) for name in names}
        for tensor, name in places.items():
            if tensor not in shards[name]:
                raise ModelFileError(
                    f"{self.folder / name} lacks the tensor {tensor} that {INDEX_FILE} promises: "
                    "fetch it again"
                )
        return {tensor: shards[name][tensor] for tensor, name in places.items()}

    def _check_shards(self, index: Path, names: list[str]) -> None:
        for name in names:
            if Path(name).name != name:  # the index must not lead out of the folder
                raise ConfigError(f"{index}: {name!r} is not the name of a file beside it")
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            shown = ", ".join(missing[:_MISSING_SHOWN])
            more = f" and {len(missing) - _MISSING_SHOWN} more" * (len(missing) > _MISSING_SHOWN)
            raise ModelNotFoundError(
                f"{self.folder} lacks {len(missing)} of {len(names)} weight files ({shown}{more}): "
                "fetch them too"
            )

    def _why_no_weights(self) -> str:
        if any(self.folder.glob(_SHARDS)):
            return f"{self.folder} has weights in several files, but no {INDEX_FILE}: fetch it too"
        if any(self.folder.glob("pytorch_model*.bin")):
            return (
                f"{self.folder} has weights only as PyTorch files (.bin): save the model with "
                "transformers' save_pretrained, which writes safetensors"
            )
        if any(self.folder.glob("*.gguf")):
            return f"{self.folder} holds a GGUF file, which needs no conversion"
        return f"{self.folder} has no {WEIGHTS_FILE} and no {INDEX_FILE}"
