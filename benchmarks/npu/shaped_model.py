"""Write a GGUF file with the shape of a real model and random weights, to measure compilations.

    python shaped_model.py llama-3.2-1b --layers 4 -o llama-1b-4-layers.gguf

Weights are scaled like trained ones, so that activations stay near one. The vocabulary is one token
per byte: only the layers are of interest. Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's layers."""

    embed_dim: int
    ffn_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 32, 8, 64),
    "llama-3.1-8b": Shape(4096, 14336, 32, 8, 128),
    "smollm2-135m": Shape(576, 1536, 9, 3, 64),
}


def main() -> None:
    """Write the file that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    write(arguments.output, SHAPES[arguments.shape], arguments.layers)


def write(path: Path, shape: Shape, num_layers: int) -> None:
    """Write a model of that shape to `path`."""
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(num_layers)
    writer.add_context_length(4096)
    writer.add_embedding_length(shape.embed_dim)
    writer.add_feed_forward_length(shape.ffn_dim)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = byte_tokens()
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(["a b"])
    for name, weights in tensors(shape, num_layers, len(tokens)):
        kind = GGMLQuantizationType.F32 if weights.ndim == 1 else GGMLQuantizationType.F16
        data = weights if weights.ndim == 1 else weights.astype(np.float16)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(shape: Shape, num_layers: int, vocab_size: int) -> Iterator[tuple[str, FloatArray]]:
    """Every tensor of the model."""
    random = np.random.default_rng(0)
    dim, q_dim = shape.embed_dim, shape.num_heads * shape.head_dim
    kv_dim = shape.num_kv_heads * shape.head_dim

    def matrix(num_rows: int, num_columns: int) -> FloatArray:
        rows = random.standard_normal((num_rows, num_columns), np.float32)
        return rows / np.float32(np.sqrt(num_columns))

    yield "token_embd.weight", matrix(vocab_size, dim) * np.float32(np.sqrt(dim))
    for layer in range(num_layers):
        yield f"blk.{layer}.attn_norm.weight", np.ones(dim, np.float32)
        yield f"blk.{layer}.attn_q.weight", matrix(q_dim, dim)
        yield f"blk.{layer}.attn_k.weight", matrix(kv_dim, dim)
        yield f"blk.{layer}.attn_v.weight", matrix(kv_dim, dim)
        yield f"blk.{layer}.attn_output.weight", matrix(dim, q_dim)
        yield f"blk.{layer}.ffn_norm.weight", np.ones(dim, np.float32)
        yield f"blk.{layer}.ffn_gate.weight", matrix(shape.ffn_dim, dim)
        yield f"blk.{layer}.ffn_up.weight", matrix(shape.ffn_dim, dim)
        yield f"blk.{layer}.ffn_down.weight", matrix(dim, shape.ffn_dim)
    yield "output_norm.weight", np.ones(dim, np.float32)
    yield "output.weight", matrix(vocab_size, dim)


def byte_tokens() -> list[str]:
    """The printable spelling of each byte as in GPT-2, and one token for the only merge."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)] + ["ab"]


if __name__ == "__main__":
    main()
