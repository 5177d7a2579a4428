"""Vocabularies of real models, in the files that their checkpoints have, give llama.cpp's ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golden_vocabularies import golden_cases, golden_metadata
from hf_tokenizers import LLAMA3_PATTERN, QWEN2_PATTERN
from powerserve.convert.vocabulary import tokenizer_metadata
from powerserve.tokenizer import Tokenizer

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
STEPS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**BYTES, "use_regex": True}],
    "llama-bpe": [{"type": "Split", "pattern": {"Regex": LLAMA3_PATTERN}}, BYTES],
    "qwen2": [{"type": "Split", "pattern": {"Regex": QWEN2_PATTERN}}, BYTES],
}
CONTROL, BYTE = 3, 6


@pytest.mark.parametrize("name", STEPS)
def test_byte_level_vocabularies(tmp_path: Path, name: str) -> None:
    golden = golden_metadata(name)
    texts = golden["tokenizer.ggml.tokens"]
    tokenizer = {
        "model": {
            "type": "BPE",
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": golden["tokenizer.ggml.merges"],
            "ignore_merges": name == "llama-bpe",
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": STEPS[name]},
        "added_tokens": added_tokens(golden),
    }
    check_ids(tmp_path, tokenizer, name)


def test_llama_2_from_merges_alone(tmp_path: Path) -> None:
    """As transformers saves it without tokenizer.model: scores have become the order of merges."""
    golden = golden_metadata("llama-spm")
    texts, types = golden["tokenizer.ggml.tokens"], golden["tokenizer.ggml.token_type"]
    ids = {text: index for index, text in enumerate(texts)}
    pairs = [
        (ids[text], text[:cut], text[cut:])
        for text, kind in zip(texts, types, strict=True)
        if kind not in (BYTE, CONTROL)
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    scores = golden["tokenizer.ggml.scores"]
    pairs.sort(key=lambda pair: -scores[pair[0]])
    tokenizer = {
        "model": {
            "type": "BPE",
            "vocab": ids,
            "merges": [[left, right] for _, left, right in pairs],
            "byte_fallback": True,
        },
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend"}]},
        "added_tokens": added_tokens(golden),
    }
    check_ids(tmp_path, tokenizer, "llama-spm")


def added_tokens(golden: dict[str, Any]) -> list[dict[str, Any]]:
    texts, types = golden["tokenizer.ggml.tokens"], golden["tokenizer.ggml.token_type"]
    return [
        {"id": index, "content": texts[index], "special": True}
        for index, kind in enumerate(types)
        if kind == CONTROL
    ]


def check_ids(folder: Path, tokenizer: dict[str, Any], name: str) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    size = len(golden_metadata(name)["tokenizer.ggml.tokens"])
    metadata = tokenizer_metadata(folder, size, {}, print)
    assert metadata["tokenizer.ggml.tokens"] == golden_metadata(name)["tokenizer.ggml.tokens"]
    converted = Tokenizer.from_metadata(metadata)
    for text, ids in golden_cases(name):
        assert converted.encode(text, add_special=False) == ids, text
