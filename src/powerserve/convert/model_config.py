"""config.json of a checkpoint: the sizes of the model and how it encodes positions.

Keys are those of transformers' configuration classes; no table of known models is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from powerserve.core.errors import ConfigError
from powerserve.model.config import (
    MAX_CONTEXT,
    MAX_DIM,
    MAX_FREQ_BASE,
    MAX_LAYERS,
    MAX_VOCAB,
)
from powerserve.model.fields import Fields

_ACTIVATIONS = {"silu", "swish"}
_DEFAULT_NORM_EPS = 1e-6
_DEFAULT_ROPE_THETA = 10000.0


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What conversion needs of config.json."""

    architecture: str  # a class of transformers, e.g. LlamaForCausalLM
    num_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # tokens
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any]  # empty: none
    tied_embeddings: bool | None  # None: config.json does not say
    attention_window: int | None  # tokens that a token sees at most; None: all

    @property
    def has_usual_head_dim(self) -> bool:
        """Whether the heads split the embedding evenly, so that their width need not be told."""
        return self.head_dim * self.num_heads == self.embed_dim


def read_config(values: Mapping[str, Any], path: Path) -> CheckpointConfig:
    """Check the values of a config.json, from which nulls were removed; `path` is for errors.

    Raises ConfigError for what is missing or wrong, UnsupportedModelError for an activation other
    than SiLU and for weights that are quantised already.
    """
    fields = Fields(values, str(path), ConfigError)
    architecture = architecture_name(values, path)
    _check_supported(fields, values)
    embed_dim = fields.integer("hidden_size", maximum=MAX_DIM)
    num_heads = fields.integer("num_attention_heads", maximum=MAX_DIM)
    rope = _rope_section(values, fields)
    config = CheckpointConfig(
        architecture=architecture,
        num_layers=fields.integer("num_hidden_layers", maximum=MAX_LAYERS),
        embed_dim=embed_dim,
        ffn_dim=fields.integer("intermediate_size", maximum=MAX_DIM),
        num_heads=num_heads,
        num_kv_heads=fields.integer("num_key_value_heads", num_heads, maximum=MAX_DIM),
        head_dim=fields.integer("head_dim", max(1, embed_dim // num_heads), maximum=MAX_DIM),
        vocab_size=fields.integer("vocab_size", maximum=MAX_VOCAB),
        context_length=fields.integer("max_position_embeddings", maximum=MAX_CONTEXT),
        norm_eps=fields.number("rms_norm_eps", _DEFAULT_NORM_EPS, maximum=1),
        rope_theta=_rope_theta(rope, fields),
        rope_scaling=rope,
        tied_embeddings=_flag(values, "tie_word_embeddings", fields),
        attention_window=_attention_window(values, fields),
    )
    _check_heads(config, fields)
    return config


def architecture_name(values: Mapping[str, Any], path: Path) -> str:
    """The class that transformers would load the checkpoint with. Raises ConfigError."""
    match values.get("architectures"):
        case [str(name), *_]:
            return name
    raise ConfigError(f"{path}: the key `architectures` does not name a model class")


def _check_supported(fields: Fields, values: Mapping[str, Any]) -> None:
    activation = fields.text("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise fields.unsupported(f"the activation {activation!r} is not supported; silu is")
    if values.get("partial_rotary_factor", 1) != 1:
        raise fields.unsupported("RoPE on a part of each head is not supported")
    if "quantization_config" in values:
        raise fields.unsupported(
            "the weights are quantised already (quantization_config): "
            "convert the original checkpoint"
        )


def _check_heads(config: CheckpointConfig, fields: Fields) -> None:
    """The numbers from which row orders are made must fit together and be of sane size."""
    if config.num_heads % config.num_kv_heads:
        raise fields.error(
            f"{config.num_heads} attention heads cannot share {config.num_kv_heads} KV heads evenly"
        )
    if config.head_dim % 2 or config.num_heads * config.head_dim > MAX_DIM:
        raise fields.error(
            f"{config.num_heads} heads of {config.head_dim} dimensions are not possible"
        )


def _rope_section(values: Mapping[str, Any], fields: Fields) -> Mapping[str, Any]:
    """`rope_scaling`, or `rope_parameters` as transformers 5 calls it."""
    key = "rope_parameters" if "rope_parameters" in values else "rope_scaling"
    section = values.get(key, {})
    if not isinstance(section, Mapping):
        raise fields.error(f"{key} is not an object")
    return {name: value for name, value in section.items() if value is not None}


def _rope_theta(rope: Mapping[str, Any], fields: Fields) -> float:
    default = rope.get("rope_theta", _DEFAULT_ROPE_THETA)
    return fields.number("rope_theta", default, maximum=MAX_FREQ_BASE)


def _flag(values: Mapping[str, Any], key: str, fields: Fields) -> bool | None:
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise fields.error(f"{key} is neither true nor false")
    return value


def _attention_window(values: Mapping[str, Any], fields: Fields) -> int | None:
    """The sliding window, unless Qwen's switch for it is off."""
    if "sliding_window" not in values or _flag(values, "use_sliding_window", fields) is False:
        return None
    return fields.integer("sliding_window", maximum=MAX_CONTEXT)
