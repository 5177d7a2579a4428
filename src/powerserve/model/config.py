"""The configuration of a model, from the metadata of its GGUF file.

Source: the keys of the GGUF specification and of llama.cpp (`llama-arch.cpp`), with llama.cpp's
defaults. Every number is checked here, once, so that a hostile file can cause neither a giant loop
nor a giant allocation later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Final, Protocol

from powerserve.core.config import ModelConfig, RopeConfig, RopeScaling, RopeStyle
from powerserve.core.errors import ModelFileError
from powerserve.model.fields import Fields

MAX_ARCHITECTURE_CHARS: Final = 64
MAX_LAYERS: Final = 1000
MAX_DIM: Final = 1 << 20
MAX_VOCAB: Final = 1 << 22
MAX_CONTEXT: Final = 1 << 31  # positions are int32
MAX_FREQ_BASE: Final = 1e15
MAX_FACTOR: Final = 1e6
DEFAULT_NORM_EPS: Final = 1e-5

# Converters permute Q and K of llama models for interleaved pairs, and leave all others alone.
_INTERLEAVED_ARCHITECTURES = frozenset({"llama"})


class Shaped(Protocol):
    """A tensor, as far as configuration needs it."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def config_from_metadata(
    metadata: Mapping[str, object],
    tensors: Mapping[str, Shaped],
    source: str = "the model file",
) -> ModelConfig:
    """The configuration of a model, from GGUF metadata and the tensors beside it.

    `source` names the file in errors. Whether the architecture is known is for the registry to say.
    Raises ModelFileError if a value is missing, of another type, out of range or at odds with
    others, and UnsupportedModelError for a model that differs between its layers, has K and V of
    different widths, or a RoPE scaling other than linear or YaRN.
    """
    fields = Fields(metadata, source, ModelFileError)
    arch = _architecture(fields)
    num_layers = fields.integer(f"{arch}.block_count", maximum=MAX_LAYERS)
    embed_dim = fields.integer(f"{arch}.embedding_length", maximum=MAX_DIM)
    num_heads = fields.per_layer(f"{arch}.attention.head_count", num_layers, maximum=MAX_DIM)
    head_dim = _head_dim(fields, arch, embed_dim, num_heads)
    context_length = fields.integer(f"{arch}.context_length", maximum=MAX_CONTEXT)
    config = ModelConfig(
        architecture=arch,
        name=fields.text("general.name", ""),
        num_layers=num_layers,
        embed_dim=embed_dim,
        ffn_dim=fields.per_layer(f"{arch}.feed_forward_length", num_layers, maximum=MAX_DIM),
        num_heads=num_heads,
        num_kv_heads=fields.per_layer(
            f"{arch}.attention.head_count_kv", num_layers, num_heads, maximum=MAX_DIM
        ),
        head_dim=head_dim,
        vocab_size=_vocab_size(fields, metadata, tensors, arch),
        context_length=context_length,
        norm_eps=_norm_eps(fields, arch),
        rope=_rope(fields, arch, head_dim, context_length),
        has_rope_factors="rope_freqs.weight" in tensors,
        has_qkv_bias="blk.0.attn_q.bias" in tensors,
        has_qk_norm="blk.0.attn_q_norm.weight" in tensors,
        tied_embeddings="output.weight" not in tensors,
    )
    check_consistency(config, fields)
    return config


def rope_style(architecture: str) -> RopeStyle:
    """How GGUF files of this architecture pair the dimensions of a head."""
    interleaved = architecture in _INTERLEAVED_ARCHITECTURES
    return RopeStyle.INTERLEAVED if interleaved else RopeStyle.HALF_SPLIT


def rope_scaling(name: str, freq_scale: float, fields: Fields) -> RopeScaling:
    """The scaling of this GGUF name; linear scaling by 1 is none.

    Raises UnsupportedModelError for another name.
    """
    try:
        scaling = RopeScaling(name)
    except ValueError:
        raise fields.unsupported(
            f"RoPE scaling {name[:40]!r} is not supported; linear and yarn are"
        ) from None
    if scaling is RopeScaling.LINEAR and freq_scale == 1:
        return RopeScaling.NONE
    return scaling


def check_consistency(config: ModelConfig, fields: Fields) -> None:
    """Check what one number says about another; raises the error type of `fields`."""
    if config.num_heads % config.num_kv_heads:
        raise fields.error(
            f"{config.num_heads} attention heads cannot share {config.num_kv_heads} KV heads evenly"
        )
    if config.num_heads * config.head_dim > MAX_DIM:
        raise fields.error(
            f"{config.num_heads} heads of {config.head_dim} are wider than {MAX_DIM} together"
        )
    if config.rope.dim % 2 or config.rope.dim > config.head_dim:
        raise fields.error(
            f"RoPE cannot rotate {config.rope.dim} dimensions of heads that have {config.head_dim}"
        )


def _architecture(fields: Fields) -> str:
    arch = fields.text("general.architecture")
    if len(arch) > MAX_ARCHITECTURE_CHARS or not arch.isprintable():
        raise fields.error("general.architecture is not a name: the file is damaged")
    return arch


def _head_dim(fields: Fields, arch: str, embed_dim: int, num_heads: int) -> int:
    key, value = f"{arch}.attention.key_length", f"{arch}.attention.value_length"
    if not (key in fields and value in fields) and embed_dim % num_heads:
        raise fields.error(
            f"{embed_dim} embedding dimensions do not split into {num_heads} attention heads"
        )
    key_dim = fields.integer(key, embed_dim // num_heads, maximum=MAX_DIM)
    value_dim = fields.integer(value, embed_dim // num_heads, maximum=MAX_DIM)
    if key_dim != value_dim:
        raise fields.unsupported(
            f"keys have {key_dim} and values {value_dim} dimensions, which is not supported"
        )
    return key_dim


def _vocab_size(
    fields: Fields, metadata: Mapping[str, object], tensors: Mapping[str, Shaped], arch: str
) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    table = tensors.get("token_embd.weight")
    if isinstance(tokens, Sized) and not isinstance(tokens, str):
        size = len(tokens)
    elif f"{arch}.vocab_size" in fields or table is None:
        size = fields.integer(f"{arch}.vocab_size", maximum=MAX_VOCAB)
    else:
        size = table.shape[0]
    if not 1 <= size <= MAX_VOCAB:
        raise fields.error(f"the vocabulary has {size} tokens instead of 1 to {MAX_VOCAB}")
    # Token ids become row numbers, so the two must agree before anything native looks one up.
    if table is not None and (len(table.shape) != 2 or table.shape[0] != size):
        raise fields.error(
            f"the embedding table has shape {list(table.shape)} for a vocabulary of {size} tokens"
        )
    return size


def _norm_eps(fields: Fields, arch: str) -> float:
    rms = f"{arch}.attention.layer_norm_rms_epsilon"
    plain = f"{arch}.attention.layer_norm_epsilon"
    return fields.number(rms if rms in fields else plain, DEFAULT_NORM_EPS, maximum=1)


def _rope(fields: Fields, arch: str, head_dim: int, context_length: int) -> RopeConfig:
    prefix = f"{arch}.rope."
    freq_scale = _freq_scale(fields, prefix)
    scaling = rope_scaling(fields.text(f"{prefix}scaling.type", "linear"), freq_scale, fields)
    if scaling is RopeScaling.NONE:
        freq_scale = 1.0  # a factor beside the type "none" is not applied
    yarn = f"{prefix}scaling.yarn_"
    if scaling is RopeScaling.YARN:
        _check_extrapolation(fields, f"{yarn}ext_factor")
    return RopeConfig(
        style=rope_style(arch),
        dim=fields.integer(f"{prefix}dimension_count", head_dim, maximum=MAX_DIM),
        freq_base=fields.number(f"{prefix}freq_base", 10000.0, maximum=MAX_FREQ_BASE),
        scaling=scaling,
        freq_scale=freq_scale,
        original_context=fields.integer(
            f"{prefix}scaling.original_context_length", context_length, maximum=MAX_CONTEXT
        ),
        attn_factor=fields.number(f"{prefix}scaling.attn_factor", 1.0, maximum=MAX_FACTOR),
        beta_fast=fields.number(f"{yarn}beta_fast", 32.0, maximum=MAX_FACTOR),
        beta_slow=fields.number(f"{yarn}beta_slow", 1.0, maximum=MAX_FACTOR),
    )


def _freq_scale(fields: Fields, prefix: str) -> float:
    factor, older = f"{prefix}scaling.factor", f"{prefix}scale_linear"
    return 1 / fields.number(factor if factor in fields else older, 1.0, maximum=MAX_FACTOR)


def _check_extrapolation(fields: Fields, key: str) -> None:
    """YaRN's mix of interpolated and original frequencies must be the paper's, weight 1."""
    if fields.number(key, 1.0, maximum=MAX_FACTOR) != 1:
        raise fields.unsupported(f"{key} is not 1, which is not supported")
