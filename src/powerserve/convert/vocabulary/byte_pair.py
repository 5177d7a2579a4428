"""Byte-level BPE out of a tokenizer.json: GPT-2's scheme, used by Llama 3, Qwen and SmolLM."""

from __future__ import annotations

from powerserve.convert.vocabulary.files import TOKENIZER_FILE, Component, TokenizerJson, components
from powerserve.convert.vocabulary.pretokenizer_name import pretokenizer_name
from powerserve.convert.vocabulary.tokens import Token
from powerserve.core.errors import TokenizerError, UnsupportedModelError

# Composed and decomposed letters are rare in what people type; llama.cpp leaves them as they are.
_HARMLESS_NORMALIZERS = {"NFC"}


def byte_pair_tokens(tokenizer: TokenizerJson) -> dict[int, Token]:
    """The tokens that merging makes; added ones come over them."""
    return {token_id: Token(text) for text, token_id in vocabulary_of(tokenizer).items()}


def byte_pair_metadata(tokenizer: TokenizerJson) -> dict[str, object]:
    """The keys that only byte-level BPE has, apart from the tokens.

    Raises UnsupportedModelError for a normalizer or pre-tokenizer that GGUF files cannot name.
    """
    check_normalizer(tokenizer.normalizer)
    model = tokenizer.model
    name = pretokenizer_name(tokenizer.pre_tokenizer, ignore_merges=model.ignore_merges)
    pairs = model.pairs
    if any(" " in left or " " in right for left, right in pairs):
        raise TokenizerError(f"{TOKENIZER_FILE} has a merge of tokens with spaces in them")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
    }


def vocabulary_of(tokenizer: TokenizerJson) -> dict[str, int]:
    """Ids by text; raises UnsupportedModelError unless the model is BPE."""
    model = tokenizer.model
    if model.type != "BPE" or not isinstance(model.vocab, dict):
        raise UnsupportedModelError(
            f"{TOKENIZER_FILE} holds a tokenizer of type {model.type}; only BPE is supported"
        )
    return model.vocab


def check_normalizer(normalizer: Component | None) -> None:
    """Refuse what changes text before it is tokenized, as GGUF files cannot say so."""
    for part in components(normalizer, "normalizers"):
        if part.get("type") not in _HARMLESS_NORMALIZERS:
            raise UnsupportedModelError(
                f"{TOKENIZER_FILE} changes text with the normalizer {part.get('type')}, which is "
                "not supported for byte-level tokenizers"
            )
