"""model.json, as a GGUF file's header has it."""

from __future__ import annotations

from powerserve.model.config import config_from_metadata
from powerserve.model.model_json import model_json
from powerserve.storage.gguf import GGUFFile


def describe_model(file: GGUFFile, model_id: str) -> dict[str, object]:
    """The content of model.json for an open GGUF file. Raises PowerServeError."""
    config = config_from_metadata(file.metadata, file.tensors, source=str(file.path))
    return model_json(config, model_id)
