"""Which operations of a graph our kernels compute together.

A packed matrix takes its neighbours in: matrices with the same input become one operation (Q, K and
V; gate and up), the RMSNorm before them, SwiGLU or the addition of the residual after them. Every
operation costs the threads a meeting, which for a small model is as dear as the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from powerserve.backend.ggml.kernels.library import MAX_WEIGHTS
from powerserve.graph import Graph, Node, Value, Weight
from powerserve.graph.ops import Add, Attention, Linear, RMSNorm, Rope, SwiGLU


@dataclass(frozen=True, slots=True, eq=False)
class FusedLinear:
    """Products of one input with packed matrices, and what belongs to them.

    `outputs` has a value for each matrix, or the single one that SwiGLU or the addition makes.
    """

    x: Value
    linears: tuple[Linear, ...]
    outputs: tuple[Value, ...]
    norm: RMSNorm | None = None  # of x, before the products
    residual: Value | None = None  # added to the product
    is_swiglu: bool = False  # of gate and up, in this order


@dataclass(frozen=True, slots=True, eq=False)
class FusedAttention:
    """Attention that rotates Q and K itself: inputs are what the two Rope nodes read."""

    rope: Rope
    attention: Attention
    inputs: tuple[Value, Value, Value]  # q, k, v
    output: Value

    @property
    def outputs(self) -> tuple[Value]:
        """The only one."""
        return (self.output,)


Step = Node | FusedLinear | FusedAttention


def fuse(
    graph: Graph, is_packed: Callable[[Weight], bool], *, with_attention: bool = False
) -> list[Step]:
    """The graph's nodes in order, packed matrices with their neighbours.

    `with_attention`: attention, too, with the position embeddings of Q and K.
    """
    fusion = _Fusion(graph, is_packed)
    steps: dict[Value, Step | None] = {node.output: node for node in graph.nodes}
    taken: set[Value] = set()
    for node in graph.nodes:
        if fusion.is_packed(node) and node.output not in taken:
            fused, outputs = fusion.around(node)
            taken.update(outputs)
            # The product's place: what it reads is there, and nothing has read what it makes.
            steps |= dict.fromkeys(outputs) | {node.output: fused}
        elif with_attention and (attention := fusion.attention(node)) is not None:
            steps |= dict.fromkeys(node.inputs[:2]) | {node.output: attention}
    return [step for step in steps.values() if step is not None]


class _Fusion:
    def __init__(self, graph: Graph, is_packed: Callable[[Weight], bool]) -> None:
        self._is_packed_weight = is_packed
        self._indices = {node.output: index for index, node in enumerate(graph.nodes)}
        self._nodes = graph.nodes
        self._users: dict[Value, list[Node]] = {}
        for node in graph.nodes:
            for value in node.inputs:
                self._users.setdefault(value, []).append(node)
        self._visible = {*graph.observed.values(), graph.logits}  # must exist by themselves

    def is_packed(self, node: Node) -> bool:
        """Whether a node multiplies with a packed matrix."""
        return isinstance(node.operation, Linear) and self._is_packed_weight(node.operation.weight)

    def around(self, first: Node) -> tuple[FusedLinear, list[Value]]:
        """What is computed together with a product, and the outputs of all nodes that are in it."""
        siblings = self._siblings(first)
        outputs = [node.output for node in siblings]
        x, norm, residual = first.inputs[0], None, None
        if (before := self._norm_before(x, siblings)) is not None:
            norm = before.operation
            outputs.append(x)
            x = before.inputs[0]
        results = tuple(node.output for node in siblings)
        after = self._only_user(results)
        is_swiglu = after is not None and _multiplies(after, results)
        if is_swiglu and after is not None:
            siblings.sort(key=lambda node: after.inputs.index(node.output))
            results = (after.output,)
        elif after is not None and (residual := self._residual(after, first)) is not None:
            results = (after.output,)
        outputs += results
        linears = tuple(node.operation for node in siblings if isinstance(node.operation, Linear))
        assert norm is None or isinstance(norm, RMSNorm)
        return FusedLinear(x, linears, results, norm, residual, is_swiglu), outputs

    def attention(self, node: Node) -> FusedAttention | None:
        """What a node computes together with the rotations before it; None: it has none."""
        if not isinstance(node.operation, Attention):
            return None
        q, k, v = node.inputs
        before = [self._nodes[self._indices[value]] for value in (q, k)]
        first, second = (each.operation for each in before)
        is_alone = all(self._users[value] == [node] for value in (q, k))
        if not (isinstance(first, Rope) and first == second and is_alone):
            return None
        if self._visible.intersection((q, k)):
            return None
        inputs = (before[0].inputs[0], before[1].inputs[0], v)
        return FusedAttention(first, node.operation, inputs, node.output)

    def _siblings(self, first: Node) -> list[Node]:
        """Products of the same input, as many as an operation can have."""

        def has_bias(node: Node) -> bool:
            return isinstance(node.operation, Linear) and node.operation.bias is not None

        same = [
            node
            for node in self._users[first.inputs[0]]
            if self.is_packed(node) and has_bias(node) == has_bias(first)
        ]
        start = same.index(first)
        return same[start : start + MAX_WEIGHTS]

    def _norm_before(self, x: Value, siblings: list[Node]) -> Node | None:
        """The norm that makes x, if nothing else needs x."""
        index = self._indices.get(x)
        if index is None or x in self._visible or len(self._users[x]) != len(siblings):
            return None
        node = self._nodes[index]
        return node if isinstance(node.operation, RMSNorm) else None

    def _only_user(self, values: tuple[Value, ...]) -> Node | None:
        """The node that reads each of these values once, if nothing else does."""
        users = [user for value in values for user in self._users.get(value, [])]
        is_shared = len(users) != len(values) or any(user is not users[0] for user in users)
        if is_shared or self._visible.intersection(values):
            return None
        return users[0] if set(values).issubset(users[0].inputs) else None

    def _residual(self, add: Node, product: Node) -> Value | None:
        """What `add` adds to the product, if that is there before it."""
        if not isinstance(add.operation, Add):
            return None
        (other,) = (value for value in add.inputs if value != product.output)
        index = self._indices.get(other, -1)
        return other if index < self._indices[product.output] else None


def _multiplies(node: Node, products: tuple[Value, ...]) -> bool:
    """Whether a node is SwiGLU of these two; one of them alone would be no gate and no up."""
    return isinstance(node.operation, SwiGLU) and set(node.inputs) == set(products)
