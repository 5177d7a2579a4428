"""Finding special tokens in a text before it is tokenized."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping


class AddedTokens:
    """Cuts a text at the tokens that are matched literally, the longest match first.

    Candidates are found by first character, then tried by length: unlike one alternation of a
    thousand texts this needs no compilation, which counts at start-up. Thread-safe.
    """

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = {text: token_id for text, token_id in ids.items() if text}
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for text in self._ids:
            lengths[text[0]].add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        first_characters = "".join(map(re.escape, self._lengths))
        self._first = re.compile(f"[{first_characters}]") if first_characters else None

    def split(self, text: str) -> Iterator[str | int]:
        """Yield the pieces of `text` in order: ids for tokens found, text for what is between."""
        if self._first is None:
            if text:
                yield text
            return
        start = position = 0
        while candidate := self._first.search(text, position):
            position = candidate.start()
            length = self._match_length(text, position)
            if not length:
                position += 1
                continue
            if position > start:
                yield text[start:position]
            yield self._ids[text[position : position + length]]
            start = position = position + length
        if start < len(text):
            yield text[start:]

    def _match_length(self, text: str, position: int) -> int:
        """The length of the longest token at `position`, 0 if there is none."""
        for length in self._lengths[text[position]]:
            if text[position : position + length] in self._ids:
                return length
        return 0
