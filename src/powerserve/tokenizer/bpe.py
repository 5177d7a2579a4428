"""Byte-level byte-pair encoding, as GPT-2 introduced it.

Text is cut into words (see `pretokenizer`), each word's UTF-8 bytes are spelled with 256 printable
characters, and merges join them (Radford et al. 2019; OpenAI's `encoder.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

from powerserve.core.errors import TokenizerError
from powerserve.tokenizer.merging import NO_MERGE, merge_symbols
from powerserve.tokenizer.pretokenizer import PreTokenizer
from powerserve.tokenizer.vocabulary import Vocabulary
from powerserve.tokenizer.word_cache import WordCache


def _spelling_of_bytes() -> list[str]:
    """The printable character for each byte; unprintable ones are numbered from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    numbered = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(numbered)) for byte in range(256)]


_SPELLING = dict(enumerate(_spelling_of_bytes()))
_BYTES = {ord(character): byte for byte, character in _SPELLING.items()}


class BytePairEncoder:
    """Encodes ordinary text (special tokens are the tokenizer's affair); thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        merges: Sequence[str],
        pretokenizer: PreTokenizer,
    ) -> None:
        """Take the merges in order of rank, each “left right”; raises TokenizerError if not so."""
        if "\n".join(merges).count(" ") != len(merges):
            raise TokenizerError("the model file's merges are not all pairs of two tokens")
        count = len(merges)
        # Built from the last to the first, so that of a repeated merge the first rank stays.
        self._ranks = dict(zip(reversed(merges), range(count - 1, -1, -1), strict=True))
        self._ids = vocabulary.ids
        self._pretokenizer = pretokenizer
        self._words = WordCache(self._encode_word)

    def encode(self, text: str, *, at_start: bool = False) -> list[int]:
        """Return the ids of `text`; `at_start` makes no difference here."""
        ids: list[int] = []
        for word in self._pretokenizer.split(text):
            ids += self._words[word]
        return ids

    def spelled_bytes(self, token_text: str) -> bytes:
        """The bytes that a normal token stands for."""
        try:
            return bytes([_BYTES[ord(character)] for character in token_text])
        except KeyError:  # not byte-level spelling: an added token that was typed as normal
            return token_text.encode("utf-8", "replace")

    def _encode_word(self, word: str) -> tuple[int, ...]:
        spelled = word.encode().decode("latin-1").translate(_SPELLING)
        if self._pretokenizer.ignore_merges and spelled in self._ids:
            return (self._ids[spelled],)
        ids: list[int] = []
        for symbol in merge_symbols(list(spelled), self._rank):
            ids += self._symbol_ids(symbol)
        return tuple(ids)

    def _rank(self, left: str, right: str) -> float:
        return self._ranks.get(f"{left} {right}", NO_MERGE)

    def _symbol_ids(self, symbol: str) -> tuple[int, ...]:
        token_id = self._ids.get(symbol)
        if token_id is not None:
            return (token_id,)
        if len(symbol) > 1:
            raise TokenizerError(f"the model file's merges make {symbol!r}, which is not a token")
        return ()  # a byte that the vocabulary lacks; “unknown” is often “end of text” here
