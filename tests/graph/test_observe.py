"""Observed graphs compute the same, and see every input of every matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of, shape_of
from powerserve.backend.base import Backend, FloatArray
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference import ReferenceBackend
from powerserve.core.dtypes import F32
from powerserve.graph import Graph
from powerserve.graph.observe import observe_inputs
from powerserve.graph.ops import Linear, SelectRows, SumSquares
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

TOKENS = Tokens([5, 6, 7, 8, 9], cells=[0, 1, 2, 3, 4])


def graph_of(path: Path) -> Graph:
    with GGUFFile.open(path) as file:
        return build_graph(config_from_metadata(file.metadata, file.tensors))


def run(backend: Backend, path: Path, graph: Graph) -> tuple[FloatArray, dict[str, FloatArray]]:
    """Logits of TOKENS and copies of the observed values."""
    with GGUFFile.open(path) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        model = backend.load(config, graph, file.tensors)
    cache = model.new_cache(32, F32)
    batch = batch_of(TOKENS)
    executable = model.compile(shape_of(batch, 32), cache)
    logits = executable.run(batch).copy()
    observed = {name: values.copy() for name, values in executable.observed().items()}
    executable.close()
    cache.close()
    model.close()
    return logits, observed


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_both_backends_see_what_each_matrix_multiplies(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(architecture))
    graph = graph_of(path)
    plain, usual = run(ReferenceBackend(), path, graph)
    expected_logits, expected = run(ReferenceBackend(), path, observe_inputs(graph))
    assert usual.keys() == {"hidden"}  # and none of a matrix
    np.testing.assert_allclose(expected_logits, plain, rtol=1e-5, atol=1e-5)
    ggml = GgmlBackend(GgmlOptions(num_threads=2))
    logits, found = run(ggml, path, observe_inputs(graph))
    ggml.close()
    np.testing.assert_allclose(logits, plain, atol=2e-3)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=5e-3, atol=1e-4, err_msg=name)


def test_first_inputs_are_the_normalised_embeddings(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf")
    _, found = run(ReferenceBackend(), path, observe_inputs(graph_of(path)))
    with GGUFFile.open(path) as file:
        table, norm = (
            file.tensors[name].data.view(np.float32).reshape(file.tensors[name].shape)
            for name in ("token_embd.weight", "blk.0.attn_norm.weight")
        )
    x = table[[5, 6, 7, 8, 9]]
    x = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * norm
    np.testing.assert_allclose(found["blk.0.attn_k.weight"], (x**2).sum(axis=0), rtol=1e-4)


def test_every_matrix_of_a_layer_is_seen_and_shared_inputs_are_summed_once(tmp_path: Path) -> None:
    graph = graph_of(write_tiny_model(tmp_path / "tiny.gguf", TinyModel(tied=True)))
    observed = observe_inputs(graph)
    matrices = {n.operation.weight.name for n in graph.nodes if isinstance(n.operation, Linear)}
    assert observed.observed.keys() == matrices - {"token_embd.weight"}  # the output layer
    sums = [node for node in observed.nodes if isinstance(node.operation, SumSquares)]
    assert len(sums) == 2 * 4  # per layer: for q, k and v; attn_output; gate and up; down
    names = observed.observed
    assert names["blk.1.attn_q.weight"] == names["blk.1.attn_v.weight"]


def test_rows_are_chosen_only_for_the_output_layer(tmp_path: Path) -> None:
    graph = observe_inputs(graph_of(write_tiny_model(tmp_path / "tiny.gguf")))
    operations = [type(node.operation) for node in graph.nodes]
    assert operations.count(SelectRows) == 1
    assert operations[-2:] == [SelectRows, Linear]
