"""The tokens of a vocabulary in the making: texts, types and scores, by id."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from powerserve.convert.vocabulary.files import AddedToken
from powerserve.core.errors import ModelFileError
from powerserve.tokenizer.vocabulary import TokenType

# Scores of tokens that no merge makes, so that they are never preferred to one that is.
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0

_SPECIAL_TEXTS = {"<pad>", "<mask>"}
_SPECIAL_FRAMES = (("<|", "|>"), ("<｜", "｜>"))
_KEPT_TYPES = {TokenType.UNKNOWN, TokenType.BYTE}


@dataclass(frozen=True, slots=True)
class Token:
    """One token; `score` is of use to SentencePiece only."""

    text: str
    type: TokenType = TokenType.NORMAL
    score: float = 0.0


def complete(
    base: dict[int, Token],
    added: Iterable[AddedToken],
    vocab_size: int,
    note: Callable[[str], None],
) -> list[Token]:
    """All tokens from 0 to `vocab_size`: `base`, `added` over it, and padding where ids are free.

    An added token beyond the embedding table is left out, with a note. Raises ModelFileError if a
    token of `base` lies there.
    """
    outside = next((index for index in base if not 0 <= index < vocab_size), None)
    if outside is not None:
        raise ModelFileError(
            f"the tokenizer has a token {outside}, but the model's vocabulary has only "
            f"{vocab_size} tokens: do both belong to the same model?"
        )
    tokens = dict(base)
    for each in added:
        if 0 <= each.id < vocab_size:
            tokens[each.id] = _added(each, tokens.get(each.id))
        else:
            note(f"leaving out the added token {each.content!r}: the model has no row {each.id}")
    return [tokens.get(index) or _padding(index) for index in range(vocab_size)]


def _added(added: AddedToken, below: Token | None) -> Token:
    if below is not None and below.text == added.content and below.type in _KEPT_TYPES:
        return below
    score = below.score if below is not None else ADDED_SCORE
    if added.special or _looks_special(added.content):
        return Token(added.content, TokenType.CONTROL, score)
    # Text is searched for these before spaces are replaced, so they must have ordinary spaces.
    return Token(added.content.replace("▁", " "), TokenType.USER_DEFINED, score)


def _looks_special(text: str) -> bool:
    """Some models declare their control tokens as ordinary ones; llama.cpp goes by their looks."""
    framed = any(text.startswith(left) and text.endswith(right) for left, right in _SPECIAL_FRAMES)
    return framed or text in _SPECIAL_TEXTS


def _padding(index: int) -> Token:
    """A row of the embedding table without token: tables are padded to round sizes."""
    return Token(f"[PAD{index}]", TokenType.UNUSED, PADDING_SCORE)
