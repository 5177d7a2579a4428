"""Every weight type that PowerServe accepts is multiplied by ggml, in every kind of buffer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from batches import Tokens, batch_of, one_slice
from powerserve.backend.ggml.backend import GgmlBackend, GgmlOptions
from powerserve.backend.reference.dequantise import dequantise
from powerserve.core import dtypes
from powerserve.core.config import ModelConfig, RopeConfig, RopeStyle
from powerserve.core.dtypes import DType
from powerserve.graph import Graph, Weight
from quantised import float_tensor, quantised_tensor

WEIGHT_TYPES = [dtypes.F16, dtypes.BF16, *(dtype for dtype in dtypes.ALL if dtype.is_quantised)]
NUM_IN, NUM_TOKENS = 512, 6


@pytest.fixture(scope="module")
def ggml() -> Iterator[GgmlBackend]:
    backend = GgmlBackend(GgmlOptions(num_threads=2))
    yield backend
    backend.close()


@pytest.mark.parametrize("num_out", [64, 37], ids=["whole tiles", "odd rows"])
@pytest.mark.parametrize("dtype", WEIGHT_TYPES, ids=str)
def test_products_agree_with_dequantised_weights(
    ggml: GgmlBackend, dtype: DType, num_out: int
) -> None:
    """Within the error of ggml's 8-bit activations."""
    rng = np.random.default_rng(3)
    table = rng.normal(0, 1, (16, NUM_IN)).astype(np.float32)
    values = rng.normal(0, 0.1, (num_out, NUM_IN)).astype(np.float32)
    weight = quantised_tensor(values, dtype)
    graph = Graph()
    embedded = graph.embedding(graph.token_ids, Weight("table", table.shape))
    selected = graph.select_outputs(embedded)
    graph.logits = graph.linear(selected, Weight("weight", (num_out, NUM_IN)))
    weights = {"table": float_tensor(table, dtypes.F32), "weight": weight}
    model = ggml.load(_config(num_out), graph, weights)
    cache = model.new_cache(256, dtypes.F16)
    ids = [3, 1, 4, 1, 5, 9]
    found = model.compile(one_slice(NUM_TOKENS, 256, NUM_TOKENS), cache).run(
        batch_of(Tokens(ids, cells=list(range(NUM_TOKENS))))
    )
    expected = table[ids] @ dequantise(weight).T
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.02


def _config(vocab_size: int) -> ModelConfig:
    rope = RopeConfig(RopeStyle.HALF_SPLIT, dim=32)
    return ModelConfig(
        architecture="none", num_layers=1, embed_dim=NUM_IN, ffn_dim=32, num_heads=1,
        num_kv_heads=1, head_dim=32, vocab_size=vocab_size, context_length=256, norm_eps=1e-5,
        rope=rope,
    )  # fmt: skip
