"""A Hugging Face checkpoint as one GGUF file, by llama.cpp's conventions.

Everything is planned and checked first, the tokenizer and the model's graph included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from powerserve.convert.architectures import Architecture, architecture_of
from powerserve.convert.checkpoint import CONFIG_FILE, Checkpoint
from powerserve.convert.element_types import AUTO, FILE_TYPES, check_element_type, chosen_type
from powerserve.convert.gguf_plan import (
    QUANTISATION_VERSION,
    GGUFPlan,
    OutputTensor,
    output_tensors,
    write_file,
)
from powerserve.convert.metadata_values import encoded
from powerserve.convert.model_config import CheckpointConfig, architecture_name, read_config
from powerserve.convert.rope import rope_metadata
from powerserve.convert.tensor_plan import PlannedTensor, plan_tensors
from powerserve.convert.vocabulary import tokenizer_metadata
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.copying import file_errors
from powerserve.storage.progress import SILENT, Progress


class Content(Enum):
    """What of a model goes into the file."""

    ALL = "all"
    VOCABULARY = "vocabulary"  # no tensors
    EMBEDDING = "embedding"  # only the embedding table, for an NPU that has the rest


@dataclass(frozen=True, slots=True)
class ConversionOptions:
    """How to convert."""

    out_type: str = AUTO  # or one of `element_types.OUT_TYPES`
    content: Content = Content.ALL
    name: str = ""  # of the model; "": that of its folder


def plan_conversion(
    checkpoint: Checkpoint, options: ConversionOptions, progress: Progress = SILENT
) -> GGUFPlan:
    """Decide everything about the GGUF file of a checkpoint; nothing is written.

    Raises:
        UnsupportedModelError: the architecture or the tokenizer is unknown, or the checkpoint has
            what a GGUF file cannot express.
        ConfigError, ModelFileError, ModelNotFoundError, TokenizerError: a file is missing or wrong.
        UsageError: a file cannot be read.
    """
    with file_errors(f"{checkpoint.folder} cannot be read"):
        return _plan(checkpoint, options, progress)


def convert(
    folder: Path, target: Path, options: ConversionOptions, progress: Progress = SILENT
) -> None:
    """Write the checkpoint in `folder` as the GGUF file `target`.

    Raises what `plan_conversion` and `write_file` raise.
    """
    write_file(plan_conversion(Checkpoint(folder), options, progress), target, progress)


def _plan(checkpoint: Checkpoint, options: ConversionOptions, progress: Progress) -> GGUFPlan:
    path = checkpoint.folder / CONFIG_FILE
    architecture = architecture_of(architecture_name(checkpoint.config, path))
    config = read_config(checkpoint.config, path)
    planned = _planned(checkpoint, architecture, config, options.content)
    dtype = chosen_type(options.out_type, planned)
    metadata: dict[str, object] = {
        "general.architecture": architecture.gguf_name,
        "general.type": "model",
        "general.name": options.name or checkpoint.name,
        "general.quantization_version": QUANTISATION_VERSION,
        "general.file_type": FILE_TYPES[dtype],
        **_size_metadata(architecture.gguf_name, config, progress),
        **tokenizer_metadata(
            checkpoint.folder, config.vocab_size, checkpoint.config, progress.note
        ),
    }
    tensors = output_tensors(planned, dtype)
    _check_runs(metadata, tensors, path, options.content)
    return GGUFPlan(encoded(metadata), tensors)


def _planned(
    checkpoint: Checkpoint,
    architecture: Architecture,
    config: CheckpointConfig,
    content: Content,
) -> list[PlannedTensor]:
    if content is Content.VOCABULARY:
        return []
    only_embedding = content is Content.EMBEDDING
    planned = plan_tensors(architecture, config, checkpoint.tensors, only_embedding=only_embedding)
    for tensor in planned:
        check_element_type(tensor.source)
    return planned


def _size_metadata(name: str, config: CheckpointConfig, progress: Progress) -> dict[str, object]:
    """The keys below `<architecture>.`."""
    keys: dict[str, object] = {
        "block_count": config.num_layers,
        "context_length": _context_length(config, progress),
        "embedding_length": config.embed_dim,
        "feed_forward_length": config.ffn_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "vocab_size": config.vocab_size,
    }
    if not config.has_usual_head_dim:
        keys |= {
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
        }
    rope = rope_metadata(config, progress.note)
    keys |= {f"rope.{key}": value for key, value in rope.items()}
    return {f"{name}.{key}": value for key, value in keys.items()}


def _context_length(config: CheckpointConfig, progress: Progress) -> int:
    """The tokens up to which our attention, which has no window, computes what the model does."""
    window = config.attention_window
    if window is None or window >= config.context_length:
        return config.context_length
    progress.note(
        f"the model looks back {window} tokens at most, and such a window is not supported: its "
        f"context is limited to {window} tokens instead of {config.context_length}"
    )
    return window


def _check_runs(
    metadata: Mapping[str, object], tensors: list[OutputTensor], path: Path, content: Content
) -> None:
    """What is written must run here: the sizes must fit together, and the graph be built."""
    headers = {tensor.header.name: tensor.header for tensor in tensors}
    config = config_from_metadata(metadata, headers, source=str(path))
    if content is Content.ALL:
        build_graph(config)
