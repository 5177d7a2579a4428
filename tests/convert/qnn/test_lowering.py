"""Lowered chunks compute what the reference backend computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from batches import Tokens, batch_of
from npu_models import CACHE_SIZE, CONTEXT_SIZE, EXACT, cpu_chunk, logits_of, open_tiny
from powerserve.backend.base import FloatArray
from powerserve.backend.qnn import tensors
from powerserve.backend.qnn.tensors import ChunkShape, chunk_spec, lm_head_spec
from powerserve.backend.reference.attention import ancestors
from powerserve.backend.reference.rope import rope_tables
from powerserve.convert.qnn.cpu_execution import MASK_VALUE, CpuChunk, CpuGraph
from powerserve.convert.qnn.float_parts import FloatParts
from powerserve.convert.qnn.lowering import (
    BATCH_16_GAIN,
    LoweringOptions,
    lower_chunk,
    lower_lm_head,
)
from powerserve.convert.qnn.onnx_graph import OnnxGraph
from powerserve.convert.qnn.source import NpuModel
from powerserve.core.errors import ContextLengthError
from tiny_models import TinyModel
from tiny_reference import ReferenceRunner, load_reference

IDS = [7 * i % 200 for i in range(20)]
MODELS = [
    TinyModel("llama", rope_factors=True),
    TinyModel("llama", rope_scaling="yarn", tied=True),
    TinyModel("llama", num_kv_heads=4),
    TinyModel("llama", num_kv_heads=1),
    TinyModel("qwen2"),
    TinyModel("qwen3"),
]


def reference(model: NpuModel, ids: list[int] = IDS) -> tuple[FloatArray, ReferenceRunner]:
    runner = ReferenceRunner(load_reference(model.path))
    return runner.run(batch_of(Tokens(ids, range(len(ids))))), runner


@pytest.mark.parametrize(
    "tiny", MODELS, ids=lambda tiny: f"{tiny.architecture}-{tiny.num_kv_heads}"
)
def test_logits_are_those_of_the_reference(tmp_path: Path, tiny: TinyModel) -> None:
    model = open_tiny(tmp_path, tiny)
    expected, _ = reference(model)
    np.testing.assert_allclose(logits_of(model, [cpu_chunk(model)], IDS), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_keys_and_values_are_those_of_the_reference(tmp_path: Path, architecture: str) -> None:
    model = open_tiny(tmp_path, TinyModel(architecture))
    _, runner = reference(model)
    chunk = cpu_chunk(model)
    chunk.run(model.embed(IDS))
    width = model.config.head_dim
    order = np.arange(width)
    if architecture == "llama":  # the file pairs neighbours, the NPU halves
        order = np.concatenate([order[0::2], order[1::2]])
    for layer in range(model.config.num_layers):
        keys, values = runner.cache.load(layer, np.arange(len(IDS)))
        for head in range(model.config.num_kv_heads):
            scaled = keys[:, head, order] / np.sqrt(width)
            np.testing.assert_allclose(chunk.keys(layer, head, len(IDS)), scaled, atol=1e-5)
            found = chunk.values(layer, head, len(IDS))
            np.testing.assert_allclose(found, values[:, head], atol=1e-5)


def test_batch_sizes_and_chunks_do_not_change_results(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    expected = logits_of(model, [cpu_chunk(model, 12)], IDS)
    for batch_size in (1, 8, 24):
        chunks = [cpu_chunk(model, batch_size, layers=(i, i + 1)) for i in range(2)]
        np.testing.assert_allclose(logits_of(model, chunks, IDS), expected, atol=1e-4)


def test_attention_in_float16_is_close(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    exact = logits_of(model, [cpu_chunk(model)], IDS)
    rounded = logits_of(model, [cpu_chunk(model, options=LoweringOptions())], IDS)
    difference = np.abs(rounded - exact).max()
    assert 0 < difference < 0.02


@pytest.mark.parametrize(
    "parts",
    [
        FloatParts(heads={0: frozenset({1}), 1: frozenset({0, 3})}),
        FloatParts(heads={0: frozenset(range(4))}),
        FloatParts(neurons={0: frozenset({5, 9, 77}), 1: frozenset(range(128))}),
        FloatParts(frozenset({0}), frozenset({1}), neurons={0: frozenset({0})}),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_parts_that_are_kept_apart_add_up(
    tmp_path: Path, architecture: str, parts: FloatParts
) -> None:
    model = open_tiny(tmp_path, TinyModel(architecture))
    expected = logits_of(model, [cpu_chunk(model)], IDS)
    found = logits_of(model, [cpu_chunk(model, options=replace(EXACT, float_parts=parts))], IDS)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_gain_of_heads_cancels_out(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    options = replace(EXACT, attention_gain=BATCH_16_GAIN)
    found = logits_of(model, [cpu_chunk(model, options=options)], IDS)
    np.testing.assert_array_equal(found, logits_of(model, [cpu_chunk(model)], IDS))


def test_a_tree_sees_only_ancestors(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    parents = [-1, 0, 0, 1, 1, 2, 5]
    depths = [0, 1, 1, 2, 2, 2, 3]
    tree = Tokens(IDS[:7], range(20, 27), range(20), parents, [20 + depth for depth in depths])
    _, runner = reference(model)
    expected = runner.run(batch_of(tree))
    chunk = cpu_chunk(model)
    chunk.run(model.embed(IDS))
    hidden = _run_tree(model, chunk, parents, depths)
    head = CpuGraph.of(lower_lm_head(model, 8), 1)
    np.testing.assert_allclose(head.run({"x": hidden})["logits"][:7], expected, atol=1e-4)


def test_tensors_are_the_original_s(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    shape = ChunkShape(1, 2, 8, CACHE_SIZE, CONTEXT_SIZE)
    chunk = lower_chunk(model, shape)
    assert chunk.spec == chunk_spec(model.config, shape)
    head = lower_lm_head(model, 8)
    for graph, spec in ((chunk, chunk.spec), (head, lm_head_spec(model.config, 8))):
        proto = graph.model()
        onnx.checker.check_model(proto, full_check=True)
        assert [each.name for each in proto.graph.input] == [each.name for each in spec.inputs]
        assert [each.name for each in proto.graph.output] == [each.name for each in spec.outputs]
    assert lm_head_spec(model.config, 8).outputs[0].name == "logits"


def test_batch_sizes_have_the_same_weights(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)

    def weights(graph: OnnxGraph) -> dict[str, bytes]:
        return {
            name: constant.data.tobytes()
            for name, constant in graph.constants.items()
            if name.startswith("blk.")
        }

    graphs = [
        lower_chunk(model, ChunkShape(0, 2, batch_size, CACHE_SIZE, CONTEXT_SIZE))
        for batch_size in (1, 8)
    ]
    assert weights(graphs[0]) == weights(graphs[1])
    assert len(weights(graphs[0])) == 2 * 9


def test_a_text_must_fit_into_the_cache(tmp_path: Path) -> None:
    model = open_tiny(tmp_path)
    chunk = cpu_chunk(model)
    with pytest.raises(ContextLengthError, match="41 tokens do not fit into a cache of 40"):
        chunk.run(model.embed([1] * 41))


def _run_tree(
    model: NpuModel, cache: CpuChunk, parents: list[int], depths: list[int]
) -> FloatArray:
    """Hidden states [8, embed_dim] of a tree of 7 tokens after 20 cached ones."""
    shape = ChunkShape(0, 2, 8, CACHE_SIZE, CONTEXT_SIZE)
    graph = lower_chunk(model, shape, EXACT)
    inputs = {spec.name: spec.zeros() for spec in graph.spec.inputs}
    for layer in range(2):
        for head in range(model.config.num_kv_heads):
            inputs[tensors.key_cache_name(layer, head)][:, :20] = cache.keys(layer, head, 20).T
            inputs[tensors.value_cache_name(layer, head)][:20] = cache.values(layer, head, 20)
    bias = np.full((8, CONTEXT_SIZE), MASK_VALUE, np.float32)
    bias[:, :20] = 0
    visible = ancestors(np.array(parents, np.int32))
    bias[:7, CACHE_SIZE : CACHE_SIZE + 7] = np.where(visible, 0, MASK_VALUE)
    positions = np.array([20 + depth for depth in depths] + [0], np.int32)
    cos, sin = rope_tables(positions, model.config.rope, model.rope_factors())
    hidden = np.zeros((8, model.config.embed_dim), np.float32)
    hidden[:7] = model.embed(IDS[:7])
    inputs |= {"x": hidden, "attn_bias": bias, "rope_embed_cos": cos, "rope_embed_sin": sin}
    result: FloatArray = CpuGraph.of(graph, 1).run(inputs)["out"]
    return result
