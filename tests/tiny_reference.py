"""Tiny models loaded into the reference backend."""

from __future__ import annotations

from pathlib import Path

from batches import shape_of
from powerserve.backend.base import Batch, FloatArray
from powerserve.backend.reference import ReferenceBackend
from powerserve.backend.reference.backend import ReferenceModel
from powerserve.backend.reference.cache import ReferenceCache
from powerserve.core.dtypes import F32, DType
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model


def load_reference(path: Path) -> ReferenceModel:
    """The model in the GGUF file at `path`."""
    file = GGUFFile.open(path)
    config = config_from_metadata(file.metadata, file.tensors)
    return ReferenceBackend().load(config, build_graph(config), file.tensors)


def load_tiny(folder: Path, model: TinyModel) -> ReferenceModel:
    """Write the model into `folder` and load it."""
    return load_reference(write_tiny_model(folder / f"{model.architecture}.gguf", model))


class ReferenceRunner:
    """A model over one cache, for batches of any size."""

    def __init__(self, model: ReferenceModel, num_cells: int = 64, dtype: DType = F32) -> None:
        self.model = model
        self.cache: ReferenceCache = model.new_cache(num_cells, dtype)

    def run(self, batch: Batch) -> FloatArray:
        """Logits [len(batch.output_rows), vocabulary]."""
        shape = shape_of(batch, self.cache.num_cells)
        return self.model.compile(shape, self.cache).run(batch)
