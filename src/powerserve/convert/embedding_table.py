"""The token embeddings of a checkpoint of any architecture, vision-language models included.

For models whose other weights live in a compiled NPU graph; the file has no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from powerserve.convert.checkpoint import Checkpoint
from powerserve.convert.element_types import FILE_TYPES, OUT_TYPES, check_element_type
from powerserve.convert.gguf_plan import (
    QUANTISATION_VERSION,
    GGUFPlan,
    output_tensors,
    write_file,
)
from powerserve.convert.metadata_values import encoded
from powerserve.convert.tensor_plan import EMBEDDING_NAME, PlannedTensor
from powerserve.core.errors import ModelFileError
from powerserve.storage.copying import file_errors
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.safetensors import SafeTensor

ARCHITECTURE = "qwen2_vl"  # as the original labels such files, whatever the model
_NAMES = (
    "model.embed_tokens.weight",
    "tok_embeddings.weight",
    "model.tok_embeddings.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.tok_embeddings.weight",
    "model.language_model.embed_tokens.weight",
)


def extract_embedding(
    folder: Path, target: Path, out_type: str = "f32", progress: Progress = SILENT
) -> None:
    """Write the embedding table of the checkpoint in `folder` as the GGUF file `target`.

    `out_type` is one of `element_types.OUT_TYPES`. Raises ModelFileError if there is no such
    table, UsageError if a file cannot be read or written.
    """
    checkpoint = Checkpoint(folder)
    with file_errors(f"{folder} cannot be read"):
        source = embedding_table(checkpoint.tensors)
    dtype = OUT_TYPES[out_type]
    metadata = {
        "general.architecture": ARCHITECTURE,
        "general.type": "model",
        "general.name": checkpoint.name,
        "general.quantization_version": QUANTISATION_VERSION,
        "general.file_type": FILE_TYPES[dtype],
    }
    planned = PlannedTensor(EMBEDDING_NAME, source.shape, source)
    write_file(GGUFPlan(encoded(metadata), output_tensors([planned], dtype)), target, progress)


def embedding_table(tensors: Mapping[str, SafeTensor]) -> SafeTensor:
    """The table [vocabulary, width]; raises ModelFileError, UnsupportedModelError."""
    for name in _NAMES:
        table = tensors.get(name)
        if table is None:
            continue
        check_element_type(table)
        if len(table.shape) != 2 or 0 in table.shape:
            raise ModelFileError(f"{name} has shape {list(table.shape)}, which is no table")
        return table
    raise ModelFileError(f"the checkpoint has no embedding table; looked for {', '.join(_NAMES)}")
