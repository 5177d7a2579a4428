"""Each architecture's graph computes its model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from batches import Tokens, batch_of
from naive_transformer import naive_logits
from powerserve.core.config import ModelConfig, RopeConfig, RopeStyle
from powerserve.core.errors import ModelFileError, UnsupportedModelError
from powerserve.graph.ops import OUTPUTS, TOKENS, Attention, Rope, SelectRows
from powerserve.model.registry import architectures, build_graph
from tiny_models import TinyModel, tiny_weights
from tiny_reference import ReferenceRunner, load_reference, load_tiny

REFERENCE = Path(__file__).parent.parent / "reference" / "generation"
IDS = [5, 17, 200, 33, 8, 250, 71, 5, 0]
CONFIG = ModelConfig(
    architecture="llama",
    num_layers=3,
    embed_dim=32,
    ffn_dim=48,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    vocab_size=50,
    context_length=64,
    norm_eps=1e-5,
    rope=RopeConfig(RopeStyle.INTERLEAVED, dim=8),
)


@pytest.mark.parametrize(
    "model",
    [
        TinyModel("llama"),
        TinyModel("llama", tied=True, rope_factors=True, num_kv_heads=4),
        TinyModel("llama", num_kv_heads=1, num_layers=1),
        TinyModel("qwen2", tied=True),
        TinyModel("qwen3"),
    ],
    ids=["llama", "llama3.2", "one-layer", "qwen2", "qwen3"],
)
def test_logits_are_those_of_the_architecture(tmp_path: Path, model: TinyModel) -> None:
    expected = naive_logits(model, dict(tiny_weights(model)), IDS)
    got = ReferenceRunner(load_tiny(tmp_path, model)).run(batch_of(Tokens(IDS, range(len(IDS)))))
    assert expected.std() > 0.5  # the model tells tokens apart
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_smollm2_predicts_as_llama_cpp_does(smollm2: Path) -> None:
    """The first 128 tokens of a real text. llama.cpp's own noise is 0.005 nats a token."""
    expected = json.loads((REFERENCE / "smollm2-135m.json").read_text())
    ids = np.array(expected["tokens"][:128])
    runner = ReferenceRunner(load_reference(smollm2), num_cells=len(ids))
    logits = runner.run(batch_of(Tokens(ids.tolist(), range(len(ids))))).astype(np.float64)

    log_sums = np.logaddexp.reduce(logits[:-1], axis=-1)
    nll = log_sums - logits[np.arange(len(ids) - 1), ids[1:]]
    assert abs(nll.mean() - np.mean(expected["nll"][: len(nll)])) < 0.02
    is_clear = np.array(expected["margin"][: len(ids)]) > 1.0
    top1 = np.array(expected["top1"][: len(ids)])
    assert is_clear.sum() > 30
    np.testing.assert_array_equal(logits.argmax(-1)[is_clear], top1[is_clear])


@pytest.mark.parametrize("architecture", architectures())
def test_only_wanted_rows_reach_the_output_layer(architecture: str) -> None:
    graph = build_graph(replace(CONFIG, architecture=architecture))
    assert graph.logits is not None
    assert graph.logits.shape == (OUTPUTS, CONFIG.vocab_size)
    kinds = [type(node.operation) for node in graph.nodes]
    assert kinds.count(SelectRows) == 2  # the attention's output and the residual stream
    last_attention = len(kinds) - 1 - kinds[::-1].index(Attention)
    assert kinds[last_attention + 1] is SelectRows
    outputs = [node.output.shape[0] for node in graph.nodes]
    assert set(outputs[: last_attention + 1]) == {TOKENS}
    assert set(outputs[last_attention + 1 :]) == {OUTPUTS}


@pytest.mark.parametrize(
    ("architecture", "names"),
    [
        ("llama", set()),
        ("qwen2", {"attn_q.bias", "attn_k.bias", "attn_v.bias"}),
        ("qwen3", {"attn_q_norm.weight", "attn_k_norm.weight"}),
    ],
)
def test_what_an_architecture_adds_to_a_layer(architecture: str, names: set[str]) -> None:
    plain = build_graph(CONFIG).weights()
    weights = build_graph(replace(CONFIG, architecture=architecture)).weights()
    assert set(weights) - set(plain) == {
        f"blk.{layer}.{name}" for layer in range(CONFIG.num_layers) for name in names
    }
    assert set(plain) <= set(weights)


def test_a_llama_model_may_have_biases() -> None:
    weights = build_graph(replace(CONFIG, has_qkv_bias=True)).weights()
    assert weights["blk.2.attn_k.bias"].shape == (CONFIG.kv_dim,)


def test_tied_embeddings_need_no_output_layer() -> None:
    assert "output.weight" in build_graph(CONFIG).weights()
    assert "output.weight" not in build_graph(replace(CONFIG, tied_embeddings=True)).weights()


def test_rope_factors_reach_every_rotation() -> None:
    graph = build_graph(replace(CONFIG, has_rope_factors=True))
    rotations = [node.operation for node in graph.nodes if isinstance(node.operation, Rope)]
    assert len(rotations) == 2 * CONFIG.num_layers
    assert all(rope.factors == graph.weights()["rope_freqs.weight"] for rope in rotations)


def test_an_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*llama, qwen2, qwen3"):
        build_graph(replace(CONFIG, architecture="mamba"))


def test_sizes_that_contradict_each_other_are_the_files_fault() -> None:
    with pytest.raises(ModelFileError, match="4 query heads cannot share 3 key heads"):
        build_graph(replace(CONFIG, num_kv_heads=3))
