"""SentencePiece's BPE as Llama 2 and its kin use it: merges by token score, bytes as fallback.

Kudo & Richardson 2018, “SentencePiece”; the behaviour, including ties (leftmost) and the space in
front of a text, is that of llama.cpp's `llm_tokenizer_spm`.
"""

from __future__ import annotations

import re

from powerserve.core.errors import TokenizerError
from powerserve.tokenizer.merging import NO_MERGE, merge_symbols
from powerserve.tokenizer.vocabulary import TokenType, Vocabulary
from powerserve.tokenizer.word_cache import WordCache

_SPACE = "▁"
_WORD = re.compile(f"{_SPACE}+[^{_SPACE}]*|[^{_SPACE}]+")


class SentencePieceEncoder:
    """Encodes ordinary text (special tokens are the tokenizer's affair); thread-safe."""

    def __init__(
        self, vocabulary: Vocabulary, *, add_space_prefix: bool, unknown_id: int | None
    ) -> None:
        """Raises TokenizerError if the vocabulary has no scores."""
        if vocabulary.scores is None:
            raise TokenizerError("the model file has no tokenizer.ggml.scores")
        self._vocabulary = vocabulary
        ranks: list[float] = (-vocabulary.scores).tolist()
        self._ranks = dict(zip(vocabulary.texts, ranks, strict=True))
        # Control tokens are only ever matched as a whole, never put together from letters.
        for token_id in vocabulary.ids_of_type(TokenType.CONTROL, TokenType.UNKNOWN):
            del self._ranks[vocabulary.texts[token_id]]
        self._add_space_prefix = add_space_prefix
        self._unknown = () if unknown_id is None else (unknown_id,)
        self._words = WordCache(self._encode_word)
        self._cuts_words = not _has_space_inside(vocabulary)

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Return the ids of `text`, with a space before it if it is `at_start` of a fragment."""
        if at_start and self._add_space_prefix:
            text = " " + text
        text = text.replace(" ", _SPACE)
        ids: list[int] = []
        for word in _WORD.findall(text) if self._cuts_words else [text]:
            ids += self._words[word]
        return ids

    def spelled_bytes(self, token_text: str) -> bytes:
        """The bytes that a normal token stands for."""
        return token_text.replace(_SPACE, " ").encode("utf-8", "replace")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        for symbol in merge_symbols(list(word), self._rank):
            if symbol in self._ranks:
                ids.append(self._vocabulary.ids[symbol])
            else:
                ids += self._byte_ids(symbol)
        return tuple(ids)

    def _rank(self, left: str, right: str) -> float:
        return self._ranks.get(left + right, NO_MERGE)

    def _byte_ids(self, symbol: str) -> list[int]:
        ids: list[int] = []
        for byte in symbol.encode():
            token_id = self._vocabulary.ids.get(f"<0x{byte:02X}>")
            ids += self._unknown if token_id is None else (token_id,)
        return ids


def _has_space_inside(vocabulary: Vocabulary) -> bool:
    """Whether some token spans a word's end. If none does, words can be encoded one by one."""
    return re.search(f"[^{_SPACE}\n]{_SPACE}", "\n".join(vocabulary.texts)) is not None
