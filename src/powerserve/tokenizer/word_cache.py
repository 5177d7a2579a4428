"""Remembers how words were encoded: text repeats itself, and merging is the slow part."""

from __future__ import annotations

from collections.abc import Callable

_MAX_WORDS = 50_000
_MAX_CHARACTERS = 64  # longer words hardly come twice


class WordCache:
    """A bounded memo of `encode_word`; safe to use from several threads without a lock.

    Two threads may encode the same word at once; both get, and store, the same result.
    """

    def __init__(self, encode_word: Callable[[str], tuple[int, ...]]) -> None:
        self._encode_word = encode_word
        self._known: dict[str, tuple[int, ...]] = {}

    def __getitem__(self, word: str) -> tuple[int, ...]:
        ids = self._known.get(word)
        if ids is None:
            ids = self._encode_word(word)
            if len(word) <= _MAX_CHARACTERS:
                if len(self._known) >= _MAX_WORDS:
                    self._known.clear()
                self._known[word] = ids
        return ids
