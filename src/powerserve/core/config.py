"""What a model is: its architecture, sizes and position encoding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class RopeStyle(Enum):
    """How rotary embedding pairs the dimensions of a head."""

    INTERLEAVED = "interleaved"  # (0, 1), (2, 3), …: GGUF files of llama models
    HALF_SPLIT = "half-split"  # (0, d/2), (1, d/2 + 1), …: qwen2, NeoX


class RopeScaling(Enum):
    """How positions beyond the original context are mapped."""

    NONE = "none"
    LINEAR = "linear"
    YARN = "yarn"


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021; YaRN: Peng et al. 2023)."""

    style: RopeStyle
    dim: int  # rotated dimensions of each head
    freq_base: float = 10000.0
    scaling: RopeScaling = RopeScaling.NONE
    freq_scale: float = 1.0  # 1 / scaling factor
    original_context: int = 0  # tokens; the length the unscaled model was trained on
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The sizes and switches that, with the weights, define a decoder-only transformer."""

    architecture: str  # GGUF `general.architecture`
    num_layers: int
    embed_dim: int
    ffn_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # tokens the model was trained for
    norm_eps: float
    rope: RopeConfig
    name: str = ""
    has_rope_factors: bool = False  # `rope_freqs.weight`: Llama 3 frequency factors
    has_qkv_bias: bool = False
    has_qk_norm: bool = False
    tied_embeddings: bool = False  # the output layer uses the embedding table

    @property
    def kv_dim(self) -> int:
        """Width of one token's K (and of its V) in one layer."""
        return self.num_kv_heads * self.head_dim
