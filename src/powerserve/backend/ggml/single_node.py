"""A graph's nodes one by one, which is how their times can be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from powerserve.backend.ggml.library import GgmlLibrary, Tensor

NO_OPERATION = 0  # GGML_OP_NONE: nothing computes the tensor
WEIGHT_SUFFIXES = (".weight", ".bias")
NO_WORK = frozenset({"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"})  # only headers


class SingleNodeGraph:
    """A graph that holds one node at a time. Use it as a context manager.

    The nodes of a graph whose memory is placed may be computed in their order, each on its own:
    its inputs are still there.
    """

    def __init__(self, library: GgmlLibrary) -> None:
        self._library = library
        self._context = library.new_context(0, num_graph_nodes=1)
        self._graph: int = library.new_graph_custom(self._context, 1, False)

    def nodes_of(self, graph: int) -> Iterator[int]:
        """The nodes that compute something, in order."""
        for index in range(self._library.graph_n_nodes(graph)):
            node: int = self._library.graph_node(graph, index)
            if self._operation(node) not in NO_WORK:
                yield node

    def of(self, node: int) -> int:
        """The graph, with this node alone."""
        self._library.graph_clear(self._graph)
        self._library.graph_add_node(self._graph, node)
        return self._graph

    def describe(self, node: int) -> tuple[str, str]:
        """The name of the operation, and that of its weight if it has one.

        What our own kernels compute is named by both, and may have several weights.
        """
        operation = self._operation(node)
        tensor = Tensor.from_address(node)
        if operation == "CUSTOM":
            kind, _, weights = tensor.name.decode().partition(" ")
            return kind, weights
        sources = [Tensor.from_address(address) for address in tensor.src if address]
        names = (source.name.decode() for source in sources if source.op == NO_OPERATION)
        return operation, next((name for name in names if name.endswith(WEIGHT_SUFFIXES)), "")

    def _operation(self, node: int) -> str:
        description: bytes = self._library.op_desc(node)
        return description.decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.free(self._context)
