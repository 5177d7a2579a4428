"""Metadata of tokenizers small enough to reason about."""

from __future__ import annotations

from typing import Any

import numpy as np

from powerserve.tokenizer.vocabulary import TokenType
from tiny_vocabulary import MERGES, SPECIAL_TOKENS, vocabulary


def byte_pair_metadata(**changes: Any) -> dict[str, Any]:
    """ChatML's byte-level BPE of the tiny models; `changes` by key, None deletes."""
    texts = list(vocabulary())
    types = np.full(len(texts), TokenType.NORMAL, np.int32)
    types[-len(SPECIAL_TOKENS) :] = TokenType.CONTROL
    fields = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": texts,
        "token_type": types,
        "merges": list(MERGES),
        "bos_token_id": texts.index("<|endoftext|>"),
        "eos_token_id": texts.index("<|im_end|>"),
    }
    return _keys(fields | changes)


def sentence_piece_metadata(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary for a few words; `changes` as above."""
    pieces = {
        "▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "d": -9.0, "<": -9.0, "s": -9.0, ">": -9.0,
        "ab": -1.0, "bc": -2.0, "cd": -1.5, "▁a": -3.0, "▁ab": -4.0, "▁▁": -5.0, "<s": -1.0,
    }  # fmt: skip
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = np.full(len(texts), TokenType.NORMAL, np.int32)
    types[0], types[1:3], types[3:259] = TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE
    scores = np.array([0.0] * 259 + list(pieces.values()), np.float32)
    fields = {"model": "llama", "tokens": texts, "token_type": types, "scores": scores}
    return _keys(fields | changes)


def _keys(fields: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in fields.items() if value is not None}
