"""The context is chosen to fit, and what cannot fit is refused with a value that would."""

from __future__ import annotations

import re

import pytest

from powerserve.core import dtypes
from powerserve.core.config import ModelConfig, RopeConfig, RopeStyle
from powerserve.core.errors import MemoryLimitError, UsageError
from powerserve.engine.memory_plan import MemoryPlan, plan_memory

GIB = 2**30
EIGHT_BILLION = ModelConfig(
    architecture="llama",
    num_layers=32,
    embed_dim=4096,
    ffn_dim=14336,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    context_length=131072,
    norm_eps=1e-5,
    rope=RopeConfig(RopeStyle.INTERLEAVED, 128),
)


def plan(
    context: int | None, available: float | None, weights: float = 4.5, cache_size: int = 0
) -> MemoryPlan:
    return plan_memory(
        EIGHT_BILLION,
        weights_bytes=int(weights * GIB),
        kv_dtype=dtypes.F16,
        batch_size=512,
        context_size=context,
        available_bytes=None if available is None else int(available * GIB),
        cache_size=cache_size,
    )


def test_the_default_context_is_bounded() -> None:
    assert plan(None, 64).context_size == 8192


def test_a_key_value_cell_has_its_known_size() -> None:
    # 32 layers x (K and V) x 8 heads x 128 dimensions x 2 bytes
    assert plan(1024, None).kv_bytes == 1024 * 32 * 2 * 8 * 128 * 2


def test_the_default_context_shrinks_to_fit() -> None:
    small = plan(None, 5.6)
    assert 256 <= small.context_size < 8192
    assert small.context_size % 256 == 0
    assert small.total_bytes <= 5.6 * GIB


def test_a_context_that_does_not_fit_is_refused_with_one_that_does() -> None:
    with pytest.raises(MemoryLimitError, match=r"131,072 tokens needs") as refusal:
        plan(131072, 8)
    suggestion = re.search(r"-c (\d+) would fit", str(refusal.value))
    assert suggestion is not None
    assert plan(int(suggestion[1]), 8).context_size == int(suggestion[1])


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MemoryLimitError, match="smaller model"):
        plan(None, 4)


def test_nothing_is_refused_when_memory_is_unknown() -> None:
    assert plan(131072, None).context_size == 131072


def test_a_context_must_be_positive() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        plan(0, 64)


def test_a_cache_may_be_larger_than_a_context_but_not_smaller() -> None:
    one, four = plan(4096, None), plan(4096, None, cache_size=4 * 4096)
    assert four.context_size == 4096 and four.num_cells == 4 * 4096
    assert four.kv_bytes == 4 * one.kv_bytes
    assert plan(4096, None, cache_size=100).num_cells == 4096


def test_a_cache_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MemoryLimitError, match="cache of 1,000,000 tokens"):
        plan(None, 16, cache_size=1_000_000)
