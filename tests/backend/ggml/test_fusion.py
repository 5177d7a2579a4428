"""Which operations become one, in real models and in any graph, and that they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_steps import assert_sound, evaluate
from powerserve.backend.ggml.fusion import FusedAttention, FusedLinear, Step, fuse
from powerserve.backend.ggml.kernels.library import MAX_WEIGHTS
from powerserve.graph import Graph, Node, Value, Weight
from powerserve.graph.observe import observe_inputs
from powerserve.graph.ops import Attention, RMSNorm, Rope
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

IsPacked = Callable[[Weight], bool]
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
        for with_attention in (False, True):
            assert_sound(graph, fuse(graph, all_packed, with_attention=with_attention))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_attention_takes_the_rotations_in(tmp_path: Path, architecture: str) -> None:
    graph = graph_of(tmp_path, TinyModel(architecture))
    steps = fuse(graph, all_packed, with_attention=True)
    assert_sound(graph, steps)
    assert ropes_in(steps) == 0
    made = [step for step in steps if isinstance(step, FusedAttention)]
    nodes = [node for node in graph.nodes if isinstance(node.operation, Attention)]
    assert [step.attention for step in made] == [node.operation for node in nodes]
    maker = {node.output: node for node in graph.nodes}
    for step, node in zip(made, nodes, strict=True):
        q, k, v = node.inputs
        assert step.inputs == (maker[q].inputs[0], maker[k].inputs[0], v)
        assert step.rope == maker[q].operation


def test_rotations_that_differ_or_are_needed_stay(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, TinyModel(num_layers=1))
    (index,) = (i for i, node in enumerate(graph.nodes) if isinstance(node.operation, Attention))
    q, k, _ = graph.nodes[index].inputs
    for value in (q, k):
        graph.observed = {"rotated": value}
        assert ropes_in(fuse(graph, all_packed, with_attention=True)) == 2
    graph.observed = {}
    assert ropes_in(fuse(graph, all_packed, with_attention=True)) == 0
    graph.add(k, k)
    assert ropes_in(fuse(graph, all_packed, with_attention=True)) == 2
    graph.nodes.pop()
    (place,) = (i for i, node in enumerate(graph.nodes) if node.output == k)
    rope = graph.nodes[place].operation
    assert isinstance(rope, Rope)
    scaled = Rope(replace(rope.rope, freq_base=rope.rope.freq_base * 2))
    graph.nodes[place] = replace(graph.nodes[place], operation=scaled)
    assert ropes_in(fuse(graph, all_packed, with_attention=True)) == 2


def ropes_in(steps: Sequence[Step]) -> int:
    """Rotations that ggml computes."""
    return sum(isinstance(step, Node) and isinstance(step.operation, Rope) for step in steps)


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
    assert_means_the_same(*case)


def test_a_sum_of_products_takes_the_earlier_one_in() -> None:
    graph = Graph()
    x = table_rows(graph)
    first = graph.linear(x, matrix("first.weight"))
    second = graph.linear(graph.add(x, x), matrix("second.weight"))
    graph.logits = graph.add(first, second)
    assert fused(graph) == ["first", "second + residual"]
    assert_means_the_same(graph, all_packed)


def test_twice_a_product_is_no_sum_of_two() -> None:
    graph = Graph()
    x = table_rows(graph)
    first, _ = (graph.linear(x, matrix(f"{name}.weight")) for name in ("first", "second"))
    graph.logits = graph.add(first, first)
    assert fused(graph) == ["first+second"]
    assert_means_the_same(graph, all_packed)


def test_gate_and_up_may_come_in_any_order() -> None:
    graph = Graph()
    x = table_rows(graph)
    up, gate = (graph.linear(x, matrix(f"{name}.weight")) for name in ("up", "gate"))
    graph.logits = graph.swiglu(gate, up)
    assert fused(graph) == ["swiglu(gate+up)"]
    assert_means_the_same(graph, all_packed)


def test_products_with_and_without_bias_stay_apart() -> None:
    graph = Graph()
    x = table_rows(graph)
    bias = Weight("bias", (FEATURES,))
    graph.linear(x, matrix("a.weight"), bias)
    graph.linear(x, matrix("b.weight"))
    graph.logits = graph.linear(x, matrix("c.weight"), bias)
    assert fused(graph) == ["a+c", "b"]


def assert_means_the_same(graph: Graph, is_packed: IsPacked) -> None:
    """The fused steps make the numbers that the nodes make."""
    steps = fuse(graph, is_packed)
    assert_sound(graph, steps)
    expected, found = evaluate(graph, graph.nodes), evaluate(graph, steps)
    assert graph.logits is not None
    for value in (graph.logits, *graph.observed.values()):
        np.testing.assert_allclose(found[value], expected[value], rtol=1e-9, atol=1e-9)
