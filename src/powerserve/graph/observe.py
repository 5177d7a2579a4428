"""The same computation with a look at what its weights are multiplied with."""

from __future__ import annotations

from powerserve.graph.graph import Graph, Node, Value
from powerserve.graph.ops import Linear, SelectRows


def observe_inputs(graph: Graph) -> Graph:
    """`graph` with the sum of squares over all tokens of what each matrix multiplies.

    The new graph's `observed` has a value [in_features] for each matrix but the output layer, by
    the weight's name. Rows are chosen only right before the output layer, so that the last layer
    sees every token as well.
    """
    return _Copy(graph).result()


class _Copy:
    def __init__(self, graph: Graph) -> None:
        self._source = graph
        self._copy = Graph()
        self._values = {
            graph.token_ids: self._copy.token_ids,
            graph.positions: self._copy.positions,
            graph.output_rows: self._copy.output_rows,
        }
        self._sums: dict[Value, Value] = {}

    def result(self) -> Graph:
        for node in self._source.nodes:
            self._values[node.output] = self._append(node)
        assert self._source.logits is not None
        self._copy.logits = self._values[self._source.logits]
        return self._copy

    def _append(self, node: Node) -> Value:
        inputs = [self._values[value] for value in node.inputs]
        match node.operation:
            case SelectRows():
                return inputs[0]
            case Linear() if node.output == self._source.logits:
                inputs[0] = self._copy.select_outputs(inputs[0])
            case Linear(weight, _):
                self._copy.observed[weight.name] = self._sum_squares(inputs[0])
        return self._copy.append(node.operation, *inputs, name=node.output.name)

    def _sum_squares(self, x: Value) -> Value:
        """Matrices that share an input share its sums."""
        if x not in self._sums:
            self._sums[x] = self._copy.sum_squares(x)
        return self._sums[x]
