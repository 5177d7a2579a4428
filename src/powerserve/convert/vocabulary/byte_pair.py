"""Byte-level BPE out of a tokenizer.json: GPT-2's scheme, used by Llama 3, Qwen and SmolLM."""

from __future__ import annotations

from powerserve.convert.vocabulary.files import TOKENIZER_FILE, Component, TokenizerJson, components
from powerserve.convert.vocabulary.pretokenizers import matching_pretokenizers
from powerserve.convert.vocabulary.tokens import Token
from powerserve.core.errors import TokenizerError, UnsupportedModelError
from powerserve.tokenizer.merging import NO_MERGE, merge_symbols
from powerserve.tokenizer.pretokenizer import pretokenizer_by_name

# Composed and decomposed letters are rare in what people type; llama.cpp leaves them as they are.
_HARMLESS_NORMALIZERS = ("NFC",)


def byte_pair_tokens(tokenizer: TokenizerJson) -> dict[int, Token]:
    """The tokens that merging makes; added ones come over them."""
    return {token_id: Token(text) for text, token_id in vocabulary_of(tokenizer).items()}


def byte_pair_metadata(tokenizer: TokenizerJson) -> dict[str, object]:
    """The keys that only byte-level BPE has, apart from the tokens.

    Raises UnsupportedModelError for a normalizer or pre-tokenizer that GGUF files cannot name.
    """
    check_normalizer(tokenizer.normalizer)
    pairs = tokenizer.model.pairs
    if any(" " in left or " " in right for left, right in pairs):
        raise TokenizerError(f"{TOKENIZER_FILE} has a merge of tokens with spaces in them")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pretokenizer_name(tokenizer),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
    }


def pretokenizer_name(tokenizer: TokenizerJson) -> str:
    """The value of `tokenizer.ggml.pre`.

    Some recipes keep a word whole that is a token, whatever the merges say. Where the tokenizer
    does otherwise, that makes no difference if the merges make every token anyway. Raises
    UnsupportedModelError if no recipe does the same.
    """
    names = matching_pretokenizers(tokenizer.pre_tokenizer)
    for name in names:
        if pretokenizer_by_name(name).ignore_merges == tokenizer.model.ignore_merges:
            return name
    if _merges_make_all_tokens(tokenizer):
        return names[0]
    raise UnsupportedModelError(
        f"{TOKENIZER_FILE} has ignore_merges = {str(tokenizer.model.ignore_merges).lower()}, but "
        f"the pre-tokenizer {names[0]} of GGUF files does the opposite"
    )


def _merges_make_all_tokens(tokenizer: TokenizerJson) -> bool:
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.model.pairs)}

    def rank(left: str, right: str) -> float:
        return ranks.get((left, right), NO_MERGE)

    added = {token.content for token in tokenizer.added_tokens}
    texts = (text for text in vocabulary_of(tokenizer) if text not in added)
    return all(merge_symbols(list(text), rank) == [text] for text in texts)


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
