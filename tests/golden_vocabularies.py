"""Vocabularies of real models, and llama.cpp's token ids for them (tests/reference/tokenizers)."""

from __future__ import annotations

import json
import lzma
from functools import cache
from pathlib import Path
from typing import Any

from powerserve.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "reference" / "tokenizers"
NAMES = ("gpt-2", "llama-bpe", "llama-spm", "qwen2")


@cache
def golden_metadata(name: str) -> dict[str, Any]:
    """The `tokenizer.*` metadata of a model."""
    metadata: dict[str, Any] = json.loads(
        lzma.decompress((FOLDER / f"{name}.json.xz").read_bytes())
    )
    return metadata


@cache
def golden_tokenizer(name: str) -> Tokenizer:
    """The tokenizer under test for a model."""
    return Tokenizer.from_metadata(golden_metadata(name))


def golden_cases(name: str) -> list[tuple[str, list[int]]]:
    """Texts with llama.cpp's ids."""
    with (FOLDER / "cases.txt").open(encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    lines = (FOLDER / f"{name}.ids.txt").read_text().split("\n")
    return [
        (text, [int(token) for token in line.split()])
        for text, line in zip(texts, lines, strict=True)
    ]
