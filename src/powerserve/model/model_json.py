"""model.json, the description of a model in a workspace, as the original PowerServe writes it.

All keys of `llm_config` and `rope_config` are required but `rope_scale_type`. The YaRN betas have
no key: the original fixes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from powerserve.core.config import ModelConfig, RopeConfig, RopeScaling, RopeStyle
from powerserve.core.errors import ConfigError
from powerserve.model.config import (
    MAX_CONTEXT,
    MAX_DIM,
    MAX_FACTOR,
    MAX_FREQ_BASE,
    MAX_LAYERS,
    MAX_VOCAB,
    Shaped,
    check_consistency,
    rope_scaling,
)
from powerserve.model.fields import Fields

VERSION: Final = 20241202

# ggml's mode numbers. The original writes -1 for every architecture it has no entry for, qwen2
# among them, and its kernel takes that for half-split as well: it tests a bit that -1 has.
_ROPE_STYLES = {
    0: RopeStyle.INTERLEAVED,
    2: RopeStyle.HALF_SPLIT,
    -1: RopeStyle.HALF_SPLIT,
}
_ROPE_TYPES = {RopeStyle.INTERLEAVED: 0, RopeStyle.HALF_SPLIT: -1}


def config_from_model_json(
    data: Mapping[str, object],
    tensors: Mapping[str, Shaped] = MappingProxyType({}),
    source: str = "model.json",
) -> ModelConfig:
    """The configuration that the content of a model.json describes.

    What only weights tell (biases, head norms, RoPE factors, a tied output layer) is taken from
    `tensors`, and is off without them. `source` names the file in errors. Raises ConfigError for a
    missing or wrong value, UnsupportedModelError for an unknown RoPE scaling.
    """
    top = Fields(data, source, ConfigError)
    llm = top.section("llm_config")
    config = ModelConfig(
        architecture=top.text("model_arch"),
        name=top.text("model_id"),
        num_layers=llm.integer("n_layers", maximum=MAX_LAYERS),
        embed_dim=llm.integer("embed_dim", maximum=MAX_DIM),
        ffn_dim=llm.integer("ffn_dim", maximum=MAX_DIM),
        num_heads=llm.integer("n_attn_heads", maximum=MAX_DIM),
        num_kv_heads=llm.integer("n_attn_kv_heads", maximum=MAX_DIM),
        head_dim=llm.integer("head_size", maximum=MAX_DIM),
        vocab_size=llm.integer("vocab_size", maximum=MAX_VOCAB),
        context_length=llm.integer("n_ctx", maximum=MAX_CONTEXT),
        norm_eps=llm.number("norm_eps", maximum=1),
        rope=_rope(llm.section("rope_config")),
        has_rope_factors="rope_freqs.weight" in tensors,
        has_qkv_bias="blk.0.attn_q.bias" in tensors,
        has_qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings=bool(tensors) and "output.weight" not in tensors,
    )
    check_consistency(config, llm)
    kv_dim = llm.integer("kv_dim", maximum=MAX_DIM)
    if kv_dim != config.kv_dim:
        raise llm.error(f"kv_dim is {kv_dim} instead of n_attn_kv_heads x head_size")
    return config


def model_json(config: ModelConfig, model_id: str) -> dict[str, object]:
    """The content of a model.json for this model, key by key as the original exports it."""
    return {
        "model_id": model_id,
        "model_arch": config.architecture,
        "version": VERSION,
        "llm_config": {
            "embed_dim": config.embed_dim,
            "ffn_dim": config.ffn_dim,
            "n_attn_heads": config.num_heads,
            "n_attn_kv_heads": config.num_kv_heads,
            "n_layers": config.num_layers,
            "n_ctx": config.context_length,
            "head_size": config.head_dim,
            "kv_dim": config.kv_dim,
            "vocab_size": config.vocab_size,
            "norm_eps": config.norm_eps,
            "rope_config": _rope_json(config),
        },
        "vision": {},
    }


def _rope(fields: Fields) -> RopeConfig:
    number = fields.integer("rope_type", minimum=-1, maximum=2)
    if number not in _ROPE_STYLES:
        raise fields.error(f"rope_type is {number}, not 0, 2 or -1")
    freq_scale = fields.number("rope_freq_scale", maximum=MAX_FACTOR)
    scaling = rope_scaling(fields.text("rope_scale_type", "linear"), freq_scale, fields)
    return RopeConfig(
        style=_ROPE_STYLES[number],
        dim=fields.integer("rope_dim", maximum=MAX_DIM),
        freq_base=fields.number("rope_freq_base", maximum=MAX_FREQ_BASE),
        scaling=scaling,
        freq_scale=1.0 if scaling is RopeScaling.NONE else freq_scale,
        original_context=fields.integer("n_rope_ctx_orig", maximum=MAX_CONTEXT),
        attn_factor=fields.number("rope_attn_factor", maximum=MAX_FACTOR),
    )


def _rope_json(config: ModelConfig) -> dict[str, object]:
    rope = config.rope
    unscaled = rope.scaling is RopeScaling.NONE
    return {
        "rope_dim": rope.dim,
        "rope_freq_base": rope.freq_base,
        "rope_scale_type": RopeScaling.LINEAR.value if unscaled else rope.scaling.value,
        "rope_attn_factor": rope.attn_factor,
        "n_rope_ctx_orig": rope.original_context or config.context_length,
        "rope_freq_scale": rope.freq_scale,
        "rope_type": _ROPE_TYPES[rope.style],
    }
