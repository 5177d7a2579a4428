"""Which operations become one, in real models and in any graph, and that they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powerserve.backend.ggml.fusion import FusedLinear, Step, fuse
from powerserve.backend.ggml.kernels.library import MAX_WEIGHTS
from powerserve.graph import Graph, Node, Value, Weight
from powerserve.graph.observe import observe_inputs
from powerserve.graph.ops import Add, Linear, RMSNorm, SwiGLU
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

IsPacked = Callable[[Weight], bool]
FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
FEATURES = 4


def all_packed(weight: Weight) -> bool:
    """Every matrix has kernels."""
    return True


def all_but(*names: str) -> IsPacked:
    """Matrices whose names do not contain these."""
    return lambda weight: not any(name in weight.name for name in names)


def graph_of(folder: Path, model: TinyModel) -> Graph:
    """A model's graph, as its file asks for it."""
    with GGUFFile.open(write_tiny_model(folder / "tiny.gguf", model)) as file:
        return build_graph(config_from_metadata(file.metadata, file.tensors))


def fused(graph: Graph, is_packed: IsPacked = all_packed) -> list[str]:
    """What becomes of the matrices, in order: their short names, and what goes with them."""
    steps = fuse(graph, is_packed)
    assert_sound(graph, steps)
    return [describe(step) for step in steps if isinstance(step, FusedLinear)]


def describe(step: FusedLinear) -> str:
    """`norm q+k+v`"""
    names = [linear.weight.name.split(".")[-2] for linear in step.linears]
    short = "+".join(name.removeprefix("attn_").removeprefix("ffn_") for name in names)
    parts = (
        "norm" if step.norm else "",
        f"swiglu({short})" if step.is_swiglu else short,
        "+ residual" if step.residual else "",
    )
    return " ".join(part for part in parts if part)


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
    if not isinstance(step, FusedLinear):
        return 1
    extra = (step.norm is not None, step.residual is not None, step.is_swiglu)
    return len(step.linears) + sum(extra)


LAYER = ["norm q+k+v", "output + residual", "norm swiglu(gate+up)", "down + residual"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_layer_becomes_four_operations(tmp_path: Path, architecture: str) -> None:
    graph = graph_of(tmp_path, TinyModel(architecture))
    # The output layer's input is observed, so that its norm remains.
    assert fused(graph) == [*LAYER, *LAYER, "output"]


def test_norms_of_heads_stay_outside(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel("qwen3"))
    norms = [step.operation.weight.name for step in fuse(graph, all_packed)
             if isinstance(step, Node) and isinstance(step.operation, RMSNorm)]  # fmt: skip
    heads = [f"blk.{layer}.attn_{letter}_norm.weight" for layer in (0, 1) for letter in "qk"]
    assert norms == [*heads, "output_norm.weight"]


def test_biases_stay_with_their_matrices(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel("qwen2", num_layers=1))
    first, *others = (step for step in fuse(graph, all_packed) if isinstance(step, FusedLinear))
    biases = [linear.bias.name for linear in first.linears if linear.bias is not None]
    assert biases == [f"blk.0.attn_{letter}.bias" for letter in "qkv"]
    assert all(linear.bias is None for step in others for linear in step.linears)


def test_a_tied_table_may_be_the_output_layer(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel(tied=True, num_layers=1))
    assert fused(graph) == [*LAYER, "token_embd"]
    assert fused(graph, all_but("token_embd")) == LAYER


def test_nothing_changes_where_nothing_is_packed(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel())
    assert fuse(graph, lambda weight: False) == graph.nodes


@pytest.mark.parametrize(
    ("without", "expected"),
    [
        ("attn_k", ["q+v", *LAYER[1:], "output"]),
        ("attn_q", ["k+v", *LAYER[1:], "output"]),
        ("attn_output", [LAYER[0], *LAYER[2:], "output"]),
        ("ffn_gate", [*LAYER[:2], "up", LAYER[3], "output"]),
        ("ffn_up", [*LAYER[:2], "gate", LAYER[3], "output"]),
        ("ffn_down", [*LAYER[:3], "output"]),
    ],
)
def test_ggml_keeps_what_cannot_be_packed(
    tmp_path: Path, without: str, expected: list[str]
) -> None:
    graph = graph_of(tmp_path, TinyModel(num_layers=1))
    assert fused(graph, all_but(without)) == expected


def test_norms_that_are_measured_stay(tmp_path: Path) -> None:
    """For an importance matrix, the input of every matrix is summed up."""
    graph = observe_inputs(graph_of(tmp_path, TinyModel(num_layers=1)))
    assert fused(graph) == [
        "q+k+v", "output + residual", "swiglu(gate+up)", "down + residual", "output",
    ]  # fmt: skip


def test_whatever_is_observed_stays(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel("qwen2", num_layers=1))
    for node in graph.nodes:
        graph.observed["this"] = node.output
        assert_sound(graph, fuse(graph, all_packed))


def test_more_matrices_than_an_operation_takes() -> None:
    graph = Graph()
    x = graph.rms_norm(table_rows(graph), Weight("norm", (FEATURES,)), 1e-5)
    for index in range(2 * MAX_WEIGHTS + 1):
        graph.logits = graph.linear(x, matrix(f"{index}.weight"))
    assert fused(graph) == ["0+1+2", "3+4+5", "6"]


def table_rows(graph: Graph) -> Value:
    """What the token ids choose of a table."""
    return graph.embedding(graph.token_ids, Weight("table", (8, FEATURES)))


def matrix(name: str) -> Weight:
    """A square weight."""
    return Weight(name, (FEATURES, FEATURES))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, IsPacked]:
    """Any products, norms, sums and gates of each other's results."""
    graph = Graph()
    values = [table_rows(graph)]
    for index in range(draw(st.integers(1, 12))):
        a, b = (draw(st.sampled_from(values)) for _ in "ab")
        match draw(st.sampled_from(("linear", "linear", "biased", "norm", "add", "swiglu"))):
            case "linear":
                values.append(graph.linear(a, matrix(f"{index}.weight")))
            case "biased":
                bias = Weight(f"{index}.bias", (FEATURES,))
                values.append(graph.linear(a, matrix(f"{index}.weight"), bias))
            case "norm":
                values.append(graph.rms_norm(a, Weight(f"{index}.norm", (FEATURES,)), 1e-5))
            case "add":
                values.append(graph.add(a, b))
            case _:
                values.append(graph.swiglu(a, b))
    graph.logits = values[-1]
    for index, value in enumerate(draw(st.lists(st.sampled_from(values), max_size=3))):
        graph.observed[str(index)] = value
    unpacked = draw(st.sets(st.integers(0, 12), max_size=3))
    return graph, lambda weight: weight.name not in {f"{index}.weight" for index in unpacked}


@settings(max_examples=300)
@given(graphs())
def test_any_graph_means_the_same(case: tuple[Graph, IsPacked]) -> None:
    graph, is_packed = case
    steps = fuse(graph, is_packed)
    assert_sound(graph, steps)
    expected, found = evaluate(graph, graph.nodes), evaluate(graph, steps)
    assert graph.logits is not None
    for value in (graph.logits, *graph.observed.values()):
        np.testing.assert_allclose(found[value], expected[value], rtol=1e-9, atol=1e-9)


def evaluate(graph: Graph, steps: Sequence[Step]) -> Mapping[Value, FloatArray]:
    """Every value that the steps make of two tokens."""
    values = {graph.token_ids: np.zeros(2)}
    for step in steps:
        if isinstance(step, FusedLinear):
            results = _fused_linear(step, values)
        else:
            results = [_operation(step, [values[each] for each in step.inputs])]
        values |= zip(outputs_of(step), results, strict=True)
    return values


def _fused_linear(step: FusedLinear, values: Mapping[Value, FloatArray]) -> list[FloatArray]:
    x = values[step.x] if step.norm is None else _normalised(step.norm, values[step.x])
    results = [_product(linear, x) for linear in step.linears]
    if step.is_swiglu:
        results = [_swiglu(*results)]
    if step.residual is not None:
        results = [result + values[step.residual] for result in results]
    return results


def _operation(node: Node, inputs: list[FloatArray]) -> FloatArray:
    match node.operation:
        case Linear() as linear:
            return _product(linear, *inputs)
        case RMSNorm() as norm:
            return _normalised(norm, *inputs)
        case Add():
            return inputs[0] + inputs[1]
        case SwiGLU():
            return _swiglu(*inputs)
        case _:
            return _numbers("rows", (2, FEATURES))


def _product(linear: Linear, x: FloatArray) -> FloatArray:
    product = x @ _numbers(linear.weight.name, linear.weight.shape).T
    return product if linear.bias is None else product + _numbers(linear.bias.name, (FEATURES,))


def _normalised(norm: RMSNorm, x: FloatArray) -> FloatArray:
    mean = (x * x).mean(axis=1, keepdims=True)
    return x / np.sqrt(mean + norm.eps) * _numbers(norm.weight.name, norm.weight.shape)


def _swiglu(gate: FloatArray, up: FloatArray) -> FloatArray:
    return gate / (1 + np.exp(-np.clip(gate, -500, 500))) * up


def _numbers(name: str, shape: tuple[int, ...]) -> FloatArray:
    """Always the same for a name; small, so that sums of sums stay small."""
    return np.random.default_rng([*name.encode()]).normal(0, 0.5, shape)
