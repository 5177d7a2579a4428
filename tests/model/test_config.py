"""Model configuration from GGUF metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powerserve.core.config import ModelConfig, RopeConfig, RopeScaling, RopeStyle
from powerserve.core.errors import ModelFileError, PowerServeError, UnsupportedModelError
from powerserve.model.config import config_from_metadata
from powerserve.model.registry import build_graph
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model


@dataclass(frozen=True)
class Tensor:
    shape: tuple[int, ...] = (1,)


BASE: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 4,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 512,
    "llama.attention.layer_norm_rms_epsilon": 1e-6,
    "llama.vocab_size": 300,
}
TENSORS = {"token_embd.weight": Tensor((300, 64)), "output.weight": Tensor((300, 64))}


def configure(**changes: Any) -> ModelConfig:
    """BASE with changes; `__` stands for a dot, None removes, keys get the prefix `llama.`."""
    metadata = dict(BASE)
    for name, value in changes.items():
        metadata["llama." + name.replace("__", ".")] = value
    return config_from_metadata({k: v for k, v in metadata.items() if v is not None}, TENSORS)


@pytest.mark.parametrize(
    "model",
    [
        TinyModel(),
        TinyModel(tied=True, rope_factors=True, rope_scaling="linear"),
        TinyModel("qwen2", rope_scaling="yarn"),
        TinyModel("qwen3", num_layers=3),
    ],
    ids=lambda model: model.architecture,
)
def test_tiny_models_are_configured_and_build(tmp_path: Path, model: TinyModel) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", model)) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        graph = build_graph(config)
    scaling = RopeScaling(model.rope_scaling or "none")
    assert config == ModelConfig(
        architecture=model.architecture,
        name=f"tiny {model.architecture}",
        num_layers=model.num_layers,
        embed_dim=64,
        ffn_dim=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32 if model.architecture == "qwen3" else 16,
        vocab_size=model.vocab_size,
        context_length=512,
        norm_eps=float(np.float32(1e-5)),
        rope=RopeConfig(
            style=RopeStyle.INTERLEAVED if model.architecture == "llama" else RopeStyle.HALF_SPLIT,
            dim=model.actual_head_dim,
            scaling=scaling,
            freq_scale=1.0 if scaling is RopeScaling.NONE else 0.25,
            original_context=512 if scaling is RopeScaling.NONE else 128,
        ),
        has_rope_factors=model.rope_factors,
        has_qkv_bias=model.architecture == "qwen2",
        has_qk_norm=model.architecture == "qwen3",
        tied_embeddings=model.tied,
    )
    assert graph.logits is not None


def test_missing_keys_take_llama_cpps_defaults() -> None:
    config = configure(attention__head_count_kv=None, attention__layer_norm_rms_epsilon=None)
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == config.rope.dim == 16
    assert config.norm_eps == 1e-5
    assert config.rope == RopeConfig(RopeStyle.INTERLEAVED, 16, original_context=512)


def test_explicit_head_dim_need_not_divide_the_embedding() -> None:
    config = configure(
        attention__head_count=6, attention__key_length=24, attention__value_length=24
    )
    assert (config.head_dim, config.kv_dim) == (24, 48)


def test_keys_given_per_layer_count_when_all_are_equal() -> None:
    config = configure(attention__head_count_kv=np.array([2, 2, 2, 2], "<u4"))
    assert config.num_kv_heads == 2
    with pytest.raises(UnsupportedModelError, match="head_count_kv differs between layers"):
        configure(attention__head_count_kv=np.array([2, 2, 4, 2], "<u4"))
    with pytest.raises(ModelFileError, match="not a list of 4 whole numbers"):
        configure(feed_forward_length=np.array([128, 128], "<u4"))


@pytest.mark.parametrize("tokens", [None, ["a"] * 300])
@pytest.mark.parametrize("vocab_size", [None, 300])
def test_vocabulary_size_is_found_where_it_is(tokens: Any, vocab_size: Any) -> None:
    metadata = {**BASE, "tokenizer.ggml.tokens": tokens, "llama.vocab_size": vocab_size}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    assert config_from_metadata(metadata, TENSORS).vocab_size == 300


def test_more_tokens_than_embedding_rows_are_refused() -> None:
    with pytest.raises(ModelFileError, match=r"shape \[300, 64\] for a vocabulary of 301 tokens"):
        config_from_metadata({**BASE, "tokenizer.ggml.tokens": ["a"] * 301}, TENSORS)


def test_linear_scaling_under_its_new_and_old_key() -> None:
    for changes in ({"rope__scaling__factor": 4.0}, {"rope__scale_linear": 4.0}):
        rope = configure(**changes).rope
        assert (rope.scaling, rope.freq_scale) == (RopeScaling.LINEAR, 0.25)


def test_a_factor_beside_no_scaling_is_not_applied() -> None:
    rope = configure(rope__scaling__type="none", rope__scaling__factor=4.0).rope
    assert (rope.scaling, rope.freq_scale) == (RopeScaling.NONE, 1.0)


def test_yarn_keys() -> None:
    assert configure(
        rope__scaling__type="yarn",
        rope__scaling__factor=2.0,
        rope__scaling__original_context_length=256,
        rope__scaling__attn_factor=1.5,
        rope__scaling__yarn_beta_fast=16.0,
        rope__scaling__yarn_beta_slow=2.0,
        rope__freq_base=5e5,
    ).rope == RopeConfig(
        RopeStyle.INTERLEAVED, 16, 5e5, RopeScaling.YARN, 0.5, 256, 1.5, beta_fast=16, beta_slow=2
    )


def test_what_cannot_be_run_is_unsupported() -> None:
    with pytest.raises(UnsupportedModelError, match="RoPE scaling 'longrope' is not supported"):
        configure(rope__scaling__type="longrope")
    with pytest.raises(UnsupportedModelError, match="keys have 16 and values 32 dimensions"):
        configure(attention__key_length=16, attention__value_length=32)
    with pytest.raises(UnsupportedModelError, match="yarn_ext_factor is not 1"):
        configure(rope__scaling__type="yarn", rope__scaling__yarn_ext_factor=0.5)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"block_count": None}, r"llama\.block_count is missing"),
    ({"block_count": 0}, r"block_count is 0, not a whole number from 1 to 1000"),
    ({"block_count": 2**32 - 1}, "block_count is 4294967295"),
    ({"block_count": True}, "block_count is True"),
    ({"block_count": "4"}, "block_count is '4'"),
    ({"embedding_length": -64}, "embedding_length is -64"),
    ({"embedding_length": 2**21}, "embedding_length is 2097152"),
    ({"embedding_length": 66}, "66 embedding dimensions do not split into 4 attention heads"),
    ({"feed_forward_length": 1.5}, r"feed_forward_length is 1\.5"),
    ({"attention.head_count": 0}, "head_count is 0"),
    ({"attention.head_count_kv": 3}, "4 attention heads cannot share 3 KV heads"),
    ({"attention.key_length": 2**20, "attention.value_length": 2**20}, "wider than 1048576"),
    ({"context_length": 2**31 + 1}, "context_length is 2147483649"),
    ({"attention.layer_norm_rms_epsilon": 0.0}, r"epsilon is 0\.0, not a number above 0"),
    ({"attention.layer_norm_rms_epsilon": math.nan}, "epsilon is nan"),
    ({"rope.freq_base": math.inf}, "freq_base is inf"),
    ({"rope.freq_base": "x" * 10_000}, r"freq_base is 'xxx.{1,30}xxx', not"),
    ({"rope.scaling.factor": -2.0}, r"factor is -2\.0"),
    ({"rope.scaling.factor": 5e-324}, "factor is 5e-324"),
    ({"rope.dimension_count": 15}, "cannot rotate 15 dimensions"),
    ({"rope.dimension_count": 18}, "cannot rotate 18 dimensions of heads that have 16"),
    ({"rope.scaling.type": 3}, "type is 3, not a text"),
    ({"vocab_size": 2**23}, "vocab_size is 8388608"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_values_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ModelFileError, match=f"the model file: .*{sentence}"):
        configure(**changes)


def test_the_source_is_named_in_errors() -> None:
    with pytest.raises(ModelFileError, match=r"^a\.gguf: general\.architecture is missing$"):
        config_from_metadata({}, {}, "a.gguf")
    for name in ("a\nb", "x" * 65):
        with pytest.raises(ModelFileError, match="is not a name"):
            config_from_metadata({"general.architecture": name}, {})


VALUES = st.one_of(
    st.integers(-(2**63), 2**64),
    st.floats(),
    st.booleans(),
    st.text(max_size=9),
    st.sampled_from([0, 1, 2, 4, 64, 2**20, 2**31]),
    st.lists(st.integers(0, 2**32 - 1), max_size=4).map(lambda items: np.array(items, "<u4")),
    st.lists(st.floats(width=32), max_size=4).map(lambda items: np.array(items, "<f4")),
)
KEYS = [*BASE, *("llama." + name for name in ("attention.key_length", "attention.value_length"))]
KEYS += [
    "llama.rope." + name
    for name in ("dimension_count", "freq_base", "scaling.type", "scaling.factor", "scale_linear")
]


@settings(deadline=None)  # a busy machine is not a failure
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_hostile_values_are_refused_or_sane(changes: dict[str, Any]) -> None:
    try:
        config = config_from_metadata({**BASE, **changes}, {})
    except PowerServeError:
        return
    rope = config.rope
    assert config.num_layers <= 1000 and config.num_heads * config.head_dim <= 2**20
    numbers = (config.norm_eps, rope.freq_base, rope.freq_scale, rope.attn_factor)
    assert all(0 < number < np.finfo(np.float32).max for number in numbers)
