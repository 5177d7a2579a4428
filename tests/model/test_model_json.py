"""model.json, compared with the keys and values the original exports."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from powerserve.core.config import RopeScaling, RopeStyle
from powerserve.core.errors import ConfigError, UnsupportedModelError
from powerserve.model.config import config_from_metadata
from powerserve.model.model_json import config_from_model_json, model_json
from powerserve.storage.gguf import GGUFFile
from tiny_models import TinyModel, write_tiny_model

# Qwen2.5-0.5B as the original's exporter describes it.
QWEN: dict[str, Any] = {
    "model_id": "qwen2.5-0.5b",
    "model_arch": "qwen2",
    "version": 20241202,
    "llm_config": {
        "embed_dim": 896,
        "ffn_dim": 4864,
        "n_attn_heads": 14,
        "n_attn_kv_heads": 2,
        "n_layers": 24,
        "n_ctx": 32768,
        "head_size": 64,
        "kv_dim": 128,
        "vocab_size": 151936,
        "norm_eps": 1e-06,
        "rope_config": {
            "rope_dim": 64,
            "rope_freq_base": 1000000.0,
            "rope_scale_type": "linear",
            "rope_attn_factor": 1.0,
            "n_rope_ctx_orig": 32768,
            "rope_freq_scale": 1.0,
            "rope_type": -1,
        },
    },
    "vision": {},
}


def changed(place: str, value: Any) -> dict[str, Any]:
    """QWEN with the value at a dotted place replaced, or removed if None."""
    data = deepcopy(QWEN)
    *sections, key = place.split(".")
    section = data
    for name in sections:
        section = section[name]
    section[key] = value
    if value is None:
        del section[key]
    return data


def test_the_originals_file_is_read_and_written_alike() -> None:
    config = config_from_model_json(QWEN)
    assert config.architecture == "qwen2" and config.name == "qwen2.5-0.5b"
    assert (config.num_layers, config.embed_dim, config.ffn_dim) == (24, 896, 4864)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (14, 2, 64)
    assert config.rope.style is RopeStyle.HALF_SPLIT
    assert config.rope.scaling is RopeScaling.NONE
    written = model_json(config, "qwen2.5-0.5b")
    assert written == QWEN
    assert list(written["llm_config"]) == list(QWEN["llm_config"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "model",
    [TinyModel(rope_factors=True, tied=True), TinyModel("qwen2", rope_scaling="yarn")],
    ids=lambda model: model.architecture,
)
def test_a_gguf_model_survives_the_way_through_model_json(tmp_path: Path, model: TinyModel) -> None:
    with GGUFFile.open(write_tiny_model(tmp_path / "tiny.gguf", model)) as file:
        config = config_from_metadata(file.metadata, file.tensors)
        text = json.dumps(model_json(config, config.name))
        assert config_from_model_json(json.loads(text), file.tensors) == config


@pytest.mark.parametrize(
    ("number", "style"),
    [(0, RopeStyle.INTERLEAVED), (2, RopeStyle.HALF_SPLIT), (-1, RopeStyle.HALF_SPLIT)],
)
def test_rope_types_of_ggml(number: int, style: RopeStyle) -> None:
    data = changed("llm_config.rope_config.rope_type", number)
    assert config_from_model_json(data).rope.style is style


@pytest.mark.parametrize(
    "key", [*QWEN["llm_config"], "rope_config.rope_dim", "rope_config.rope_type"]
)
def test_every_key_is_required(key: str) -> None:
    name = key.rpartition(".")[2]
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        config_from_model_json(changed(f"llm_config.{key}", None))


def test_the_scale_type_may_be_missing() -> None:
    data = changed("llm_config.rope_config.rope_scale_type", None)
    assert config_from_model_json(data).rope.scaling is RopeScaling.NONE


WRONG: list[tuple[str, Any, str]] = [
    ("model_arch", 7, "model.json: model_arch is 7, not a text"),
    ("llm_config", [], r"llm_config is \[\], not an object"),
    ("llm_config.n_layers", 10**9, "llm_config: n_layers is 1000000000"),
    ("llm_config.n_layers", 24.0, "n_layers is 24.0, not a whole number"),
    ("llm_config.n_attn_kv_heads", 3, "14 attention heads cannot share 3"),
    ("llm_config.kv_dim", 64, "kv_dim is 64 instead of"),
    ("llm_config.norm_eps", "small", "norm_eps is 'small'"),
    ("llm_config.rope_config.rope_type", 1, "rope_config: rope_type is 1, not 0, 2 or -1"),
    ("llm_config.rope_config.rope_freq_scale", 0, "rope_freq_scale is 0, not a number above 0"),
]


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_values_are_refused(place: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        config_from_model_json(changed(place, value))


def test_an_unknown_scaling_is_unsupported() -> None:
    with pytest.raises(UnsupportedModelError, match="'longrope' is not supported"):
        config_from_model_json(changed("llm_config.rope_config.rope_scale_type", "longrope"))
