"""What the measurements need to know of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
    matrix_bytes_by_role: Mapping[str, int]  # what a step multiplies with, as it lies in the file
    text_ids: tuple[int, ...]  # TEXT, whose continuations are compared

    @classmethod
    def read(cls, reference: str) -> Model:
        """Read the file's description; raises a PowerServeError if there is something wrong."""
        source = locate_model(reference)
        with GGUFFile.open(source.weights) as weights:
            graph = ModelFiles.read(source, weights).graph
            sizes: Counter[str] = Counter()
            for name in matrix_names(graph):
                sizes[_role(name)] += weights.tensors[name].size_bytes
            tokenizer = Tokenizer.from_metadata(weights.metadata)
            return cls(source.name, str(source.weights), sizes, tuple(tokenizer.encode(TEXT)))

    @property
    def matrix_bytes(self) -> int:
        """Of all matrices that a step multiplies with."""
        return sum(self.matrix_bytes_by_role.values())


def matrix_names(graph: Graph) -> set[str]:
    """The weights that a step multiplies with; embeddings that are only looked up do not count."""
    operations = (node.operation for node in graph.nodes)
    return {operation.weight.name for operation in operations if isinstance(operation, Linear)}


def _role(name: str) -> str:
    """`blk.3.ffn_down.weight` -> `ffn_down`"""
    return name.removesuffix(".weight").rpartition(".")[2]
