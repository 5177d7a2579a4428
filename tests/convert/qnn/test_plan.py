"""How a model is cut into parts, and what compiling them will take."""

from __future__ import annotations

from dataclasses import replace

import pytest

from powerserve.convert.qnn.memory import MemoryEstimate
from powerserve.convert.qnn.plan import GraphSizes, make_plan, sorted_batch_sizes
from powerserve.core.config import ModelConfig, RopeConfig, RopeStyle
from powerserve.core.errors import MemoryLimitError, UsageError


def config(num_layers: int, embed_dim: int, ffn_dim: int, heads: int, kv_heads: int) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        num_layers=num_layers,
        embed_dim=embed_dim,
        ffn_dim=ffn_dim,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=64,
        vocab_size=1000,
        context_length=2048,
        norm_eps=1e-5,
        rope=RopeConfig(RopeStyle.HALF_SPLIT, 64),
    )


LLAMA_1B = config(16, 2048, 8192, 32, 8)
SMOLLM2 = config(30, 576, 1536, 9, 3)


@pytest.mark.parametrize(
    ("num_chunks", "bounds"),
    [
        (1, [(0, 30)]),
        (2, [(0, 15), (15, 30)]),
        (4, [(0, 7), (7, 15), (15, 22), (22, 30)]),
        (30, [(layer, layer + 1) for layer in range(30)]),
    ],
)
def test_layers_are_spread_evenly(num_chunks: int, bounds: list[tuple[int, int]]) -> None:
    plan = make_plan(SMOLLM2, "smol", num_chunks, GraphSizes(), with_lm_head=True)
    assert [(part.start_layer, part.end_layer) for part in plan.chunks] == bounds
    assert plan.lm_head is plan.parts[-1]


def test_more_chunks_than_layers_are_refused() -> None:
    with pytest.raises(UsageError, match="31 chunks are too many for 30 layers"):
        make_plan(SMOLLM2, "smol", 31, GraphSizes(), with_lm_head=False)


def test_sizes_that_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="--context-size 2176"):
        GraphSizes((1, 128), 2048, 2048)
    with pytest.raises(UsageError, match="larger than the cache"):
        GraphSizes((1, 128), 64, 2048)
    assert sorted_batch_sizes([128, 1, 12, 1]) == (1, 12, 128)


@pytest.mark.parametrize(
    ("model", "num_layers", "num_graphs", "measured_mb"),
    [
        (SMOLLM2, 15, 1, 393),
        (SMOLLM2, 15, 3, 914),
        (LLAMA_1B, 1, 1, 361),
        (LLAMA_1B, 1, 2, 552),
        (LLAMA_1B, 4, 1, 929),
        (LLAMA_1B, 4, 2, 1704),
    ],
)
def test_the_estimate_is_near_what_was_measured(
    model: ModelConfig, num_layers: int, num_graphs: int, measured_mb: float
) -> None:
    # docs/decisions/npu-converter.md
    estimated = MemoryEstimate(model, 4, 8, num_graphs).chunk(num_layers)
    assert measured_mb * 1e6 < estimated < 1.15 * measured_mb * 1e6


def test_too_large_chunks_are_refused_with_a_number_that_fits() -> None:
    estimate = MemoryEstimate(LLAMA_1B, 4, 8, num_graphs=3)
    estimate.check(4, 3_000_000_000, with_lm_head=True)
    with pytest.raises(MemoryLimitError, match=r"one chunk takes about 9.* GB.*--n-model-chunks 4"):
        estimate.check(1, 3_000_000_000, with_lm_head=True)
    assert estimate.fitting_chunks(3_000_000_000) == 4
    with pytest.raises(MemoryLimitError, match=r"one of 4 chunks .* too little for a single layer"):
        estimate.check(4, 400_000_000, with_lm_head=True)
    estimate.check(1, None, with_lm_head=True)


def test_a_vocabulary_too_large_to_compile_is_left_to_the_cpu() -> None:
    estimate = MemoryEstimate(replace(SMOLLM2, vocab_size=1_000_000), 4, 8, num_graphs=3)
    estimate.check(1, 3_000_000_000, with_lm_head=False)
    with pytest.raises(MemoryLimitError, match=r"the LM head takes about .*--cpu-lm-head"):
        estimate.check(1, 3_000_000_000, with_lm_head=True)
