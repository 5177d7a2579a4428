"""One matrix product as a model of its own, with its weight placed exactly as a model's are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, BatchSlice, FloatArray, SliceShape, StepShape
from powerserve.backend.ggml.kernels.choice import Packing
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig, RopeConfig, RopeStyle
from powerserve.core.dtypes import DType
from powerserve.graph import Graph, Weight

if TYPE_CHECKING:
    from powerserve.backend.ggml.backend import GgmlBackend
    from powerserve.backend.ggml.executable import GgmlExecutable

NUM_CELLS = 512


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as it would lie in a file."""

    shape: tuple[int, ...]
    dtype: DType
    data: npt.NDArray[np.uint8]


class SingleProduct:
    """Rows of `table` [rows, in_features] times a weight [out_features, in_features]."""

    def __init__(
        self,
        backend: GgmlBackend,
        table: FloatArray,
        weight: RawTensor,
        packing: Packing | None = None,
    ) -> None:
        graph = Graph()
        embedded = graph.embedding(graph.token_ids, Weight("table", table.shape))
        selected = graph.select_outputs(embedded)
        graph.logits = graph.linear(selected, Weight("weight", weight.shape))
        rows = RawTensor(table.shape, dtypes.F32, table.view(np.uint8).reshape(-1))
        weights = {"table": rows, "weight": weight}
        self._model = backend.place(_config(weight), graph, weights, packing)
        self._cache = self._model.new_cache(NUM_CELLS, dtypes.F16)
        self._executables: dict[int, GgmlExecutable] = {}

    def __call__(self, num_rows: int) -> FloatArray:
        """The product with the first rows: [num_rows, out_features], valid until the next call."""
        if num_rows not in self._executables:
            shape = StepShape((SliceShape(num_rows, 0, NUM_CELLS),), num_rows)
            self._executables[num_rows] = self._model.compile(shape, self._cache)
        return self._executables[num_rows].run(_batch(num_rows))

    def close(self) -> None:
        """Release the memory."""
        for executable in self._executables.values():
            executable.close()
        self._cache.close()
        self._model.close()


def _batch(num_tokens: int) -> Batch:
    rows = np.arange(num_tokens, dtype=np.int32)
    one_sequence = BatchSlice(0, np.empty(0, np.int64), rows - 1, 0, num_tokens)
    return Batch(rows, rows, rows.astype(np.int64), [one_sequence], rows)


def _config(weight: RawTensor) -> ModelConfig:
    """A model of which only the sizes of its (unused) cache matter."""
    out_features, in_features = weight.shape
    return ModelConfig(
        architecture="none", num_layers=1, embed_dim=in_features, ffn_dim=32, num_heads=1,
        num_kv_heads=1, head_dim=32, vocab_size=out_features, context_length=NUM_CELLS,
        norm_eps=1e-5, rope=RopeConfig(RopeStyle.HALF_SPLIT, dim=32),
    )  # fmt: skip
