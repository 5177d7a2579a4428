"""What a model's files say before its weights are loaded: configuration, graph, memory."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import ModelFileError
from powerserve.core.machine import available_memory
from powerserve.engine.memory_plan import MemoryPlan, plan_memory
from powerserve.graph import Graph, ShapeError
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.resolve import ModelSource


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that can be loaded."""

    source: ModelSource
    weights: GGUFFile
    config: ModelConfig
    graph: Graph

    @classmethod
    def read(cls, source: ModelSource, weights: GGUFFile) -> ModelFiles:
        """Read the configuration in an open file; raises ModelFileError, UnsupportedModelError."""
        config = config_from_metadata(weights.metadata, weights.tensors)
        try:
            graph = build_graph(config)
        except ShapeError as error:
            raise ModelFileError(
                f"the model's sizes in {source.weights} contradict each other: {error}"
            ) from None
        return cls(source, weights, config, graph)

    def plan(
        self, *, kv_dtype: DType, batch_size: int, context_size: int | None, cache_size: int = 0
    ) -> MemoryPlan:
        """What it will take now; raises MemoryLimitError if that is not there."""
        return plan_memory(
            self.config,
            weights_bytes=self._weights_bytes,
            kv_dtype=kv_dtype,
            batch_size=batch_size,
            context_size=context_size,
            available_bytes=available_memory(),
            cache_size=cache_size,
        )

    @property
    def _weights_bytes(self) -> int:
        tensors = self.weights.tensors
        size_bytes = sum(tensor.size_bytes for tensor in tensors.values())
        if self.config.tied_embeddings and "token_embd.weight" in tensors:
            size_bytes += tensors["token_embd.weight"].size_bytes  # repacked for the output layer
        return size_bytes
