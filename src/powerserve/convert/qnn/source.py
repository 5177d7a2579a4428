"""The model that is converted: its graph, and its weights in float32 as NPU graphs want them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray
from powerserve.backend.checks import check_weights
from powerserve.backend.reference.dequantise import dequantise
from powerserve.convert.architectures.base import interleaved_rows
from powerserve.convert.hf_to_gguf import ConversionOptions, convert
from powerserve.core.config import ModelConfig, RopeStyle
from powerserve.core.dtypes import DType
from powerserve.core.errors import UnsupportedModelError
from powerserve.graph import Graph
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.model_folder import ModelFolder, is_model_folder
from powerserve.storage.progress import SILENT, Progress
from powerserve.tokenizer.tokenizer import Tokenizer

CONVERTED_NAME = "model.gguf"
EMBEDDING = "token_embd.weight"
_ROTATED = ("attn_q.", "attn_k.")  # weights and biases whose rows RoPE pairs


class NpuModel:
    """A GGUF file with every weight on demand in float32, RoPE always half-split.

    GGUF files of llama models pair neighbouring rows of Q and K; NPU graphs rotate halves, as
    checkpoints do, so those rows are put back.

    Attributes:
        config: sizes, with `rope.style` half-split.
        graph: the computation that every backend runs.
    """

    def __init__(self, file: GGUFFile) -> None:
        """Raises ModelFileError for a damaged file, UnsupportedModelError for a foreign model."""
        self._file = file
        config = config_from_metadata(file.metadata, file.tensors, str(file.path))
        if config.rope.dim != config.head_dim:
            raise UnsupportedModelError(
                f"{file.path}: RoPE rotates {config.rope.dim} of {config.head_dim} dimensions of a "
                "head, which graphs for the NPU cannot express"
            )
        self._is_interleaved = config.rope.style is RopeStyle.INTERLEAVED
        self.config: ModelConfig = replace(
            config, rope=replace(config.rope, style=RopeStyle.HALF_SPLIT)
        )
        self.graph: Graph = build_graph(self.config)
        check_weights(self.graph, file.tensors)

    @classmethod
    def open(cls, path: Path, build: Path, progress: Progress = SILENT) -> NpuModel:
        """Open a GGUF file, a model folder or a checkpoint folder of Hugging Face.

        A checkpoint is converted to `build`/model.gguf first. Raises what opening and converting
        raise, all of them PowerServeErrors.
        """
        if path.is_file():
            return cls(GGUFFile.open(path))
        if is_model_folder(path):
            return cls(GGUFFile.open(ModelFolder(path).weights))
        target = build / CONVERTED_NAME
        convert(path, target, ConversionOptions(), progress)
        return cls(GGUFFile.open(target))

    @property
    def path(self) -> Path:
        """The GGUF file."""
        return self._file.path

    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer; raises TokenizerError."""
        return Tokenizer.from_metadata(self._file.metadata)

    def weight(self, name: str) -> FloatArray:
        """A weight of the graph, [out_features, in_features] or [features]."""
        values = dequantise(self._file.tensors[name])
        if self._is_interleaved and any(part in name for part in _ROTATED):
            return values[self._half_split_rows(len(values))]
        return values

    def rope_factors(self) -> FloatArray | None:
        """What divides RoPE's frequencies [head_dim / 2], if the model has such."""
        return self.weight("rope_freqs.weight") if self.config.has_rope_factors else None

    def embed(self, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> FloatArray:
        """Rows of the embedding table: [T, embed_dim]."""
        tensor = self._file.tensors[EMBEDDING]
        rows = tensor.data.reshape(tensor.shape[0], -1)[np.asarray(token_ids)]
        return dequantise(_Rows((len(rows), tensor.shape[1]), tensor.dtype, rows.reshape(-1)))

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _half_split_rows(self, num_rows: int) -> npt.NDArray[np.intp]:
        head_dim = self.config.head_dim
        return np.argsort(interleaved_rows(num_rows // head_dim, head_dim))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a tensor."""

    shape: tuple[int, ...]
    dtype: DType
    data: npt.NDArray[np.uint8]
