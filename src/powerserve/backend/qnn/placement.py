"""Which part of a model runs where: embedding on the CPU, layers on the NPU, output on either.

The graph is the one that every backend gets. Its layers were compiled long ago, so all that counts
here is what surrounds them, and how positions are encoded, which the host computes for the NPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.errors import UnsupportedModelError
from powerserve.graph import Graph, Node
from powerserve.graph.ops import Embedding, Linear, RMSNorm, Rope


@dataclass(frozen=True, slots=True)
class Placement:
    """The nodes of a graph that the host computes, or may have to."""

    nodes: tuple[Node, Node, Node, Node]  # of the operations below, in their order
    embedding: Embedding
    rope: Rope  # of the first layer; all are alike
    norm: RMSNorm  # before the output layer
    output: Linear
    observed_name: str | None  # under which the graph lets see the norm's result

    @classmethod
    def of(cls, graph: Graph) -> Placement:
        """Find them; raises UnsupportedModelError for a graph that is no decoder of text."""
        embedding, output = graph.nodes[0], graph.nodes[-1]
        rope = next((node for node in graph.nodes if isinstance(node.operation, Rope)), None)
        norm = next((node for node in graph.nodes if node.output in output.inputs), None)
        if (
            rope is None
            or norm is None
            or not isinstance(embedding.operation, Embedding)
            or not isinstance(rope.operation, Rope)
            or not isinstance(norm.operation, RMSNorm)
            or not isinstance(output.operation, Linear)
        ):
            raise UnsupportedModelError(
                "the NPU runs decoders of text with rotary positions, as they were compiled; "
                "this computation needs the CPU (--no-qnn)"
            )
        names = [name for name, value in graph.observed.items() if value == norm.output]
        if len(names) < len(graph.observed):
            raise UnsupportedModelError(
                "what happens inside the layers cannot be observed on the NPU; use --no-qnn"
            )
        return cls(
            (embedding, rope, norm, output),
            embedding.operation,
            rope.operation,
            norm.operation,
            output.operation,
            names[0] if names else None,
        )

    def host_graph(self, has_lm_head: bool) -> Graph:
        """The nodes whose weights the host cannot do without."""
        return Graph(nodes=list(self.nodes[:2] if has_lm_head else self.nodes))
