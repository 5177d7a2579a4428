"""What the steps of a fused graph mean: that they are sound, and the numbers that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from powerserve.backend.ggml.fusion import FusedAttention, FusedLinear, Step
from powerserve.graph import Graph, Node, Value
from powerserve.graph.ops import Add, Embedding, Linear, RMSNorm, SwiGLU

DoubleArray = npt.NDArray[np.float64]
NUM_TOKENS = 2


def assert_sound(graph: Graph, steps: Sequence[Step]) -> None:
    """Everything is computed once, after what it needs, and what is looked at is there."""
    known = {graph.token_ids, graph.positions, graph.output_rows}
    for step in steps:
        assert known.issuperset(inputs_of(step))
        assert known.isdisjoint(outputs_of(step))
        known.update(outputs_of(step))
    assert known.issuperset(graph.observed.values())
    assert graph.logits in known
    assert sum(map(num_nodes, steps)) == len(graph.nodes)
    for step in steps:
        if isinstance(step, FusedLinear):  # kernels add a bias to each product or to none
            assert len({linear.bias is None for linear in step.linears}) == 1


def inputs_of(step: Step) -> list[Value]:
    """What a step reads."""
    if isinstance(step, FusedLinear):
        return [step.x, *([] if step.residual is None else [step.residual])]
    return list(step.inputs)


def outputs_of(step: Step) -> tuple[Value, ...]:
    """What a step makes."""
    return (step.output,) if isinstance(step, Node) else step.outputs


def num_nodes(step: Step) -> int:
    """How many nodes of the graph a step stands for."""
    if isinstance(step, Node):
        return 1
    if isinstance(step, FusedAttention):
        return 3
    extra = (step.norm is not None, step.residual is not None, step.is_swiglu)
    return len(step.linears) + sum(extra)


def evaluate(graph: Graph, steps: Sequence[Step]) -> Mapping[Value, DoubleArray]:
    """Every value that the steps make of NUM_TOKENS tokens."""
    values = {graph.token_ids: np.arange(NUM_TOKENS, dtype=np.float64)}
    for step in steps:
        if isinstance(step, FusedLinear):
            results = _fused_linear(step, values)
        else:
            assert isinstance(step, Node)
            results = [_operation(step, [values[each] for each in step.inputs])]
        values |= zip(outputs_of(step), results, strict=True)
    return values


def _fused_linear(step: FusedLinear, values: Mapping[Value, DoubleArray]) -> list[DoubleArray]:
    x = values[step.x] if step.norm is None else _normalised(step.norm, values[step.x])
    results = [_product(linear, x) for linear in step.linears]
    if step.is_swiglu:
        results = [_swiglu(*results)]
    if step.residual is not None:
        results = [result + values[step.residual] for result in results]
    return results


def _operation(node: Node, inputs: list[DoubleArray]) -> DoubleArray:
    match node.operation:
        case Linear() as linear:
            return _product(linear, *inputs)
        case RMSNorm() as norm:
            return _normalised(norm, *inputs)
        case Add():
            return inputs[0] + inputs[1]
        case SwiGLU():
            return _swiglu(*inputs)
        case Embedding(table):
            return _numbers(table.name, table.shape)[:NUM_TOKENS]
        case unknown:
            raise TypeError(f"no numbers for {type(unknown).__name__}")


def _product(linear: Linear, x: DoubleArray) -> DoubleArray:
    product = x @ _numbers(linear.weight.name, linear.weight.shape).T
    bias = linear.bias
    return product if bias is None else product + _numbers(bias.name, bias.shape)


def _normalised(norm: RMSNorm, x: DoubleArray) -> DoubleArray:
    mean = (x * x).mean(axis=1, keepdims=True)
    return x / np.sqrt(mean + norm.eps) * _numbers(norm.weight.name, norm.weight.shape)


def _swiglu(gate: DoubleArray, up: DoubleArray) -> DoubleArray:
    return gate / (1 + np.exp(-np.clip(gate, -500, 500))) * up


def _numbers(name: str, shape: tuple[int, ...]) -> DoubleArray:
    """Always the same for a name; small, so that sums of sums stay small."""
    return np.random.default_rng([*name.encode()]).normal(0, 0.5, shape)
