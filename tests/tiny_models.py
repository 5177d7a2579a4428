"""Tiny random models as GGUF files: real in every respect but size and knowledge.

    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel("qwen2", dtype="Q8_0", seed=3))

Written with the `gguf` package, so that they are an independent check of our own reader. Weights
are scaled like trained ones: activations stay near one and logits have a deviation of about two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, TokenType, quants

from tiny_vocabulary import CHATML, MERGES, SPECIAL_TOKENS, vocabulary

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TinyModel:
    """What to write. K-quants need `embed_dim` and `ffn_dim` in multiples of 256.

    `dtype` is the GGUF type of every matrix; norms, biases and RoPE factors are F32, as converters
    leave them. Types: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, TQ1_0, TQ2_0, and (as
    random blocks, since the `gguf` package cannot quantise them) Q4_K, Q5_K, Q6_K.
    """

    architecture: str = "llama"  # or qwen2 (QKV bias) or qwen3 (QK norm, head_dim 32)
    dtype: str = "F32"
    seed: int = 0
    tied: bool = False  # no output.weight
    num_layers: int = 2
    embed_dim: int = 64
    ffn_dim: int = 128
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int | None = None  # None: embed_dim / num_heads, but 32 for qwen3
    context_length: int = 512
    rope_factors: bool = False  # rope_freqs.weight, as in Llama 3.1
    rope_scaling: str | None = None  # "linear" or "yarn", factor 4
    alignment: int | None = None

    @property
    def actual_head_dim(self) -> int:
        """Width of one head."""
        if self.head_dim is not None:
            return self.head_dim
        return 32 if self.architecture == "qwen3" else self.embed_dim // self.num_heads

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary every tiny model shares."""
        return len(vocabulary())


def write_tiny_model(
    path: Path, model: TinyModel = TinyModel(), *, max_tensors_per_file: int = 0
) -> Path:
    """Write `model` to `path` and return the path of the (first) file.

    With `max_tensors_per_file` the model is split into `stem-00001-of-0000N.gguf` and so on.
    """
    writer = GGUFWriter(path, model.architecture, split_max_tensors=max_tensors_per_file)
    if model.alignment:
        writer.add_custom_alignment(model.alignment)
    _add_sizes(writer, model)
    _add_rope(writer, model)
    add_vocabulary(writer)
    for name, tensor in tiny_weights(model):
        _add_tensor(writer, name, tensor, model.dtype, model.seed)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if max_tensors_per_file:
        return sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]
    return path


def tiny_weights(model: TinyModel) -> Iterator[tuple[str, FloatArray]]:
    """Names and values of every tensor before quantisation; matrices are [out, in]."""
    rng = np.random.default_rng(model.seed)

    def matrix(num_out: int, num_in: int) -> FloatArray:
        return rng.normal(0, num_in**-0.5, (num_out, num_in)).astype(np.float32)

    def vector(size: int, mean: float, deviation: float) -> FloatArray:
        return rng.normal(mean, deviation, size).astype(np.float32)

    embed, head = model.embed_dim, model.actual_head_dim
    q_dim, kv_dim = model.num_heads * head, model.num_kv_heads * head
    yield "token_embd.weight", 2 * matrix(model.vocab_size, embed)
    yield "output_norm.weight", vector(embed, 1, 0.1)
    if not model.tied:
        yield "output.weight", 2 * matrix(model.vocab_size, embed)
    if model.rope_factors:
        yield "rope_freqs.weight", np.linspace(1, 8, head // 2, dtype=np.float32)
    for layer in range(model.num_layers):
        prefix = f"blk.{layer}."
        yield prefix + "attn_norm.weight", vector(embed, 1, 0.1)
        for name, size in (("q", q_dim), ("k", kv_dim), ("v", kv_dim)):
            yield f"{prefix}attn_{name}.weight", matrix(size, embed)
            if model.architecture == "qwen2":
                yield f"{prefix}attn_{name}.bias", vector(size, 0, 0.2)
            if model.architecture == "qwen3" and name != "v":
                yield f"{prefix}attn_{name}_norm.weight", vector(head, 1, 0.1)
        yield prefix + "attn_output.weight", matrix(embed, q_dim)
        yield prefix + "ffn_norm.weight", vector(embed, 1, 0.1)
        yield prefix + "ffn_gate.weight", matrix(model.ffn_dim, embed)
        yield prefix + "ffn_up.weight", matrix(model.ffn_dim, embed)
        yield prefix + "ffn_down.weight", matrix(embed, model.ffn_dim)


def add_vocabulary(writer: GGUFWriter) -> None:
    """The byte-level BPE vocabulary of `tiny_vocabulary`, special ids and a ChatML template."""
    tokens = vocabulary()
    num_normal = len(tokens) - len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [TokenType.NORMAL] * num_normal + [TokenType.CONTROL] * len(SPECIAL_TOKENS)
    )
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)


def _add_sizes(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_name(f"tiny {model.architecture}")
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.context_length)
    writer.add_embedding_length(model.embed_dim)
    writer.add_feed_forward_length(model.ffn_dim)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocab_size)
    if model.actual_head_dim * model.num_heads != model.embed_dim:
        writer.add_key_length(model.actual_head_dim)
        writer.add_value_length(model.actual_head_dim)


def _add_rope(writer: GGUFWriter, model: TinyModel) -> None:
    writer.add_rope_dimension_count(model.actual_head_dim)
    writer.add_rope_freq_base(10000.0)
    if model.rope_scaling is None:
        return
    writer.add_rope_scaling_type(RopeScalingType(model.rope_scaling))
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(model.context_length // 4)


def _add_tensor(
    writer: GGUFWriter, name: str, tensor: FloatArray, dtype_name: str, seed: int
) -> None:
    if tensor.ndim == 1:
        writer.add_tensor(name, tensor)
        return
    dtype = GGMLQuantizationType[dtype_name]
    if dtype_name in _SCALE_OFFSETS:
        raw = _random_k_quant(tensor, dtype, np.random.default_rng((seed, *name.encode())))
    else:
        raw = quants.quantize(tensor, dtype)
    writer.add_tensor(name, raw, raw_dtype=dtype)


# Where a block keeps its F16 scale and, for types that have one, its F16 minimum.
_SCALE_OFFSETS = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, None)}
_CENTRES = {"Q4_K": 7.5, "Q5_K": 15.5, "Q6_K": 0.0}  # the minimum that makes the mean zero


def _random_k_quant(
    like: FloatArray, dtype: GGMLQuantizationType, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Random blocks whose values have the shape and standard deviation of `like`."""
    from gguf import GGML_QUANT_SIZES

    block_size, block_bytes = GGML_QUANT_SIZES[dtype]
    num_out, num_in = like.shape
    assert num_in % block_size == 0, f"{dtype.name} needs rows in multiples of {block_size}"
    blocks = rng.integers(0, 256, (num_out, num_in // block_size, block_bytes), dtype=np.uint8)
    scale_at, minimum_at = _SCALE_OFFSETS[dtype.name]

    def set_scale(scale: float) -> None:
        blocks[..., scale_at : scale_at + 2] = np.array([scale], np.float16).view(np.uint8)
        if minimum_at is not None:
            minimum = np.array([scale * _CENTRES[dtype.name]], np.float16)
            blocks[..., minimum_at : minimum_at + 2] = minimum.view(np.uint8)

    set_scale(1.0)
    rows = blocks.reshape(num_out, -1)
    set_scale(float(like.std() / quants.dequantize(rows, dtype).std()))
    return rows
