"""SentencePiece-like BPE out of a tokenizer.json, where its tokenizer.model is missing.

Such files (Llama 2, Mistral, TinyLlama) were made from a SentencePiece model: its scores became the
order of merges. GGUF files want the scores, so the way is walked back. SentencePiece joins any two
neighbours whose text is a token, the highest score first; BPE joins listed pairs, the lowest rank
first. The two agree if every such pair is listed and all pairs that make one token follow each
other; then the rank of a token's first merge serves as its score.
"""

from __future__ import annotations

import re

from powerserve.convert.vocabulary.byte_pair import vocabulary_of
from powerserve.convert.vocabulary.files import TOKENIZER_FILE, TokenizerJson, components
from powerserve.convert.vocabulary.tokens import Token
from powerserve.core.errors import UnsupportedModelError
from powerserve.tokenizer.vocabulary import TokenType

_SPACE = "▁"
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_NORMALIZERS = ("Prepend", "Replace")


def scored_tokens(tokenizer: TokenizerJson) -> dict[int, Token]:
    """The tokens with scores that make SentencePiece merge them in the listed order.

    Raises UnsupportedModelError if no scores can do that.
    """
    ids = vocabulary_of(tokenizer)
    added = {token.content for token in tokenizer.added_tokens}
    ranks = _ranks(tokenizer.model.pairs)
    _check_all_pairs_are_listed(tokenizer, ids.keys() - added)
    tokens = {}
    for text, token_id in ids.items():
        kind = _type_of(text, tokenizer.model.unk_token)
        tokens[token_id] = Token(text, kind, -float(ranks.get(text, 0)))
    return tokens


def adds_space_prefix(tokenizer: TokenizerJson) -> bool:
    """Whether text gets a space in front; raises UnsupportedModelError for an unknown step."""
    prefixes = False
    for part in components(tokenizer.normalizer, "normalizers"):
        if part.get("type") not in _NORMALIZERS:
            raise _unsupported(part.get("type"))
        prefixes |= part.get("type") == "Prepend"
    for part in components(tokenizer.pre_tokenizer, "pretokenizers"):
        if part.get("type") != "Metaspace":
            raise _unsupported(part.get("type"))
        older = "always" if part.get("add_prefix_space", True) else "never"
        prefixes |= part.get("prepend_scheme", older) != "never"
    return prefixes


def _type_of(text: str, unknown: str | None) -> TokenType:
    if text == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if _BYTE.fullmatch(text) else TokenType.NORMAL


def _ranks(pairs: list[tuple[str, str]]) -> dict[str, int]:
    """The rank of the first merge that makes each token."""
    ranks: dict[str, int] = {}
    previous = ""
    for rank, (left, right) in enumerate(pairs):
        made = left + right
        if made != previous and made in ranks:
            raise _no_scores(made)
        ranks.setdefault(made, rank)
        previous = made
    return ranks


def _check_all_pairs_are_listed(tokenizer: TokenizerJson, texts: set[str]) -> None:
    listed = set(tokenizer.model.pairs)
    for text in texts:
        if _BYTE.fullmatch(text):
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in texts and right in texts and (left, right) not in listed:
                raise _no_scores(text)


def _no_scores(text: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the merges of {TOKENIZER_FILE} do not follow from scores ({text!r} is merged otherwise), "
        "which a GGUF file needs: put the model's tokenizer.model beside it"
    )


def _unsupported(step: object) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{TOKENIZER_FILE} treats text with {step}, which is not supported for SentencePiece-like "
        "tokenizers: put the model's tokenizer.model beside it"
    )
