"""What the measurements need to know of a model."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.engine.model_files import ModelFiles
from powerserve.graph import Graph
from powerserve.graph.ops import Linear
from powerserve.llm import locate_model
from powerserve.storage.gguf import GGUFFile
from powerserve.tokenizer.tokenizer import Tokenizer

TEXT = (
    "The lighthouse keeper wrote down the weather every evening. When the wind came from the "
    "north, the ships stayed in the harbour and the sailors told stories about the islands, "
    "where the rain is warm and nobody owns a clock. In the morning the fishermen looked at the "
    "sky, counted their nets and decided"
)


@dataclass(frozen=True, slots=True)
class Model:
    """A model file."""

    name: str
    path: str
    matrix_bytes: int  # of the weights that a step multiplies with, as they lie in the file
    text_ids: tuple[int, ...]  # TEXT, whose continuations are compared

    @classmethod
    def read(cls, reference: str) -> Model:
        """Read the file's description; raises a PowerServeError if there is something wrong."""
        source = locate_model(reference)
        with GGUFFile.open(source.weights) as weights:
            graph = ModelFiles.read(source, weights).graph
            size_bytes = sum(weights.tensors[name].size_bytes for name in matrix_names(graph))
            tokenizer = Tokenizer.from_metadata(weights.metadata)
            return cls(source.name, str(source.weights), size_bytes, tuple(tokenizer.encode(TEXT)))


def matrix_names(graph: Graph) -> set[str]:
    """The weights that steps multiply with: all that grows with the model, but the embedding."""
    return {
        node.operation.weight.name for node in graph.nodes if isinstance(node.operation, Linear)
    }
