"""Models quantised layer by layer, and written as graphs that share their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from npu_models import CACHE_SIZE, CONTEXT_SIZE, EXACT, cpu_chunk, cpu_lm_head, logits_of, open_tiny
from powerserve.backend.base import FloatArray
from powerserve.backend.qnn.tensors import ChunkShape
from powerserve.convert.qnn.calibration import Calibration, QuantisedLayer, quantise_layers
from powerserve.convert.qnn.cpu_execution import CpuChunk, CpuGraph
from powerserve.convert.qnn.float_parts import FloatParts
from powerserve.convert.qnn.lowering import LoweringOptions, lower_chunk
from powerserve.convert.qnn.onnx_graph import WEIGHTS_FILE, WeightFile
from powerserve.convert.qnn.perplexity import perplexity
from powerserve.convert.qnn.qdq import QuantisedLinear, QuantisedLinears
from powerserve.convert.qnn.quantise import QuantisationOptions, ScaleSearch
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import ModelFileError
from powerserve.evaluate.scoring import token_nll
from powerserve.storage import atomic
from tiny_models import TinyModel

TEXT = tuple(11 * i % 250 for i in range(38))
W8 = QuantisationOptions(8, ScaleSearch.MINMAX)
W4 = QuantisationOptions(4, ScaleSearch.MSE, lm_head_bits=16)


def quantised(
    model: NpuModel, options: QuantisationOptions, lowering: LoweringOptions = EXACT
) -> list[QuantisedLayer]:
    return list(quantise_layers(model, Calibration((TEXT, TEXT[::-1]), options, lowering, 1)))


def linears(layers: list[QuantisedLayer]) -> Mapping[str, QuantisedLinear]:
    return {name: linear for layer in layers for name, linear in layer.linears.items()}


def relative_error(found: FloatArray, expected: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_eight_bits_are_close_to_floating_point(tmp_path: Path, architecture: str) -> None:
    model = open_tiny(tmp_path, TinyModel(architecture))
    layers = quantised(model, W8)
    chunk = cpu_chunk(model, linears=QuantisedLinears(linears(layers)))
    error = relative_error(
        logits_of(model, [chunk], TEXT), logits_of(model, [cpu_chunk(model)], TEXT)
    )
    assert 0 < error < 0.02
    assert len(layers) == 3
    assert all(layer.error < 0.03 for layer in layers)
    assert set(layers[2].linears) == {"output"}
    assert len(linears(layers)) == 2 * 7 + 1


def test_errors_are_reported_by_layer(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    layers = quantised(model, W4)
    hidden = model.embed(TEXT)
    expected = cpu_chunk(model, layers=(0, 1)).run(hidden)
    writer = QuantisedLinears(layers[0].linears)
    made = cpu_chunk(model, layers=(0, 1), linears=writer).run(hidden)
    error = np.linalg.norm(made - expected) / np.linalg.norm(expected - hidden)
    assert layers[0].error == pytest.approx(error, rel=0.2)  # this is one of the two texts
    assert 0.02 < layers[0].error < 0.5


def test_what_is_listed_stays_in_floating_point(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    parts = FloatParts(
        ffn_layers=frozenset({1}), heads={0: frozenset({2})}, neurons={0: frozenset({3, 100})}
    )
    lowering = replace(EXACT, float_parts=parts)
    layers = quantised(model, W4, lowering)
    assert {name for name in layers[1].linears if "ffn" in name} == set()
    assert all(".float" not in name for name in linears(layers))
    shape = ChunkShape(0, 2, 8, CACHE_SIZE, CONTEXT_SIZE)
    graph = lower_chunk(model, shape, lowering, QuantisedLinears(linears(layers)))

    def exact(name: str) -> FloatArray:
        constant = graph.constants[name]
        return constant.data.view(np.float32).reshape(constant.shape)

    width = model.config.head_dim
    head = slice(2 * width, 3 * width)
    key_head = slice(width, 2 * width)  # shared by query heads 2 and 3
    weight = {name: model.weight(f"blk.0.{name}.weight") for name in ("attn_q", "attn_k")}
    np.testing.assert_array_equal(exact("blk.0.attn_q.float.weight"), weight["attn_q"][head])
    np.testing.assert_array_equal(exact("blk.0.attn_k.float.weight"), weight["attn_k"][key_head])
    output = model.weight("blk.0.attn_output.weight")
    np.testing.assert_array_equal(exact("blk.0.attn_output.float.weight"), output[:, head])
    down = model.weight("blk.0.ffn_down.weight")
    np.testing.assert_array_equal(exact("blk.0.ffn_down.float.weight"), down[:, [3, 100]])
    assert layers[0].linears["blk.0.ffn_down"].matrix.codes.shape == (64, 126)
    np.testing.assert_array_equal(
        exact("blk.1.ffn_gate.weight"), model.weight("blk.1.ffn_gate.weight")
    )


def test_sixteen_bits_change_nothing(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    layers = quantised(model, QuantisationOptions(16, lm_head_bits=16))
    assert linears(layers) == {}
    assert [layer.error for layer in layers] == [0, 0, 0]


def test_some_matrices_may_have_more_bits(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    options = replace(W4, wide_matrices=frozenset({"attn_v", "ffn_down"}))
    bits = {name: each.matrix.bits for name, each in linears(quantised(model, options)).items()}
    wide = {name for name, number in bits.items() if number == 8}
    assert wide == {f"blk.{layer}.{name}" for layer in (0, 1) for name in ("attn_v", "ffn_down")}
    assert len(bits) == 14


def test_matrices_that_make_giants_stay_in_floating_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token of which an output is a thousand times the others would set the step for all."""
    model = open_tiny(tmp_path)
    original = model.embed

    def one_giant(token_ids: list[int]) -> FloatArray:
        rows = original(token_ids)
        rows[np.asarray(token_ids) == TEXT[0], 7] = 3e4
        return rows

    weight = model.weight

    def towards_it(name: str) -> FloatArray:
        values = weight(name).copy()
        if name in ("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"):
            values[5, :] = 0
            values[5, 7] = 40.0
        if name == "blk.0.ffn_norm.weight":
            values[7] = 1
        return values

    monkeypatch.setattr(model, "embed", one_giant)
    monkeypatch.setattr(model, "weight", towards_it)
    layers = quantised(model, W4)
    assert set(layers[0].linears) == {
        f"blk.0.{name}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up")
    }
    assert "blk.1.ffn_down" in layers[1].linears


def test_sums_of_single_blocks_have_room(tmp_path: Path) -> None:
    """They may leave the range of the whole sum, and the NPU would clip them."""
    model = open_tiny(tmp_path)
    blocks, rows = (
        quantised(model, replace(W4, block_size=size))[0].linears["blk.0.attn_v"].output
        for size in (32, None)
    )
    assert (blocks.low, blocks.high) == pytest.approx((4 * rows.low, 4 * rows.high))


@pytest.mark.parametrize("damage", [np.nan, 1e38])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: float
) -> None:
    model = open_tiny(tmp_path)
    original = model.weight

    def damaged(name: str) -> FloatArray:
        weight = original(name).copy()
        if name == "blk.1.ffn_gate.weight":
            weight[5, 5] = damage
        return weight

    monkeypatch.setattr(model, "weight", damaged)
    with pytest.raises(ModelFileError, match="layer 1 computes numbers that are not finite"):
        quantised(model, QuantisationOptions())


def test_saved_graphs_of_all_batch_sizes_share_their_weights(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    writer = QuantisedLinears(linears(quantised(model, W4)))
    shapes = [ChunkShape(0, 2, size, CACHE_SIZE, CONTEXT_SIZE) for size in (8, 1)]
    graphs = [lower_chunk(model, shape, LoweringOptions(), writer) for shape in shapes]
    sizes = []
    with atomic.new_file(tmp_path / WEIGHTS_FILE) as file:
        weights = WeightFile(file, WEIGHTS_FILE)
        for graph, shape in zip(graphs, shapes, strict=True):
            graph.save(tmp_path / f"batch_{shape.batch_size}.onnx", weights)
            sizes.append(file.tell())
    assert sizes[1] - sizes[0] < 0.1 * sizes[0]  # zeros that pad the cache differ
    in_memory = CpuChunk(CpuGraph.of(graphs[0], 1), graphs[0].spec, shapes[0], model)
    expected = logits_of(model, [in_memory], TEXT)
    for graph, shape in zip(graphs, shapes, strict=True):
        path = tmp_path / f"batch_{shape.batch_size}.onnx"
        chunk = CpuChunk(CpuGraph(path, {}, 1), graph.spec, shape, model)
        assert relative_error(logits_of(model, [chunk], TEXT), expected) < 1e-3


def test_perplexity_is_the_exponential_of_the_mean_loss(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    texts = [TEXT[:20], TEXT[5:]]
    chunks = [cpu_chunk(model, layers=(layer, layer + 1)) for layer in range(2)]
    found = perplexity(model, iter(chunks), cpu_lm_head(model), texts, num_skipped=3)
    losses = [
        token_nll(logits_of(model, [cpu_chunk(model)], text)[3:-1], np.array(text[4:], np.int32))
        for text in texts
    ]
    assert found.value == pytest.approx(np.exp(np.concatenate(losses).mean()), rel=1e-4)
    assert found.error > 0
