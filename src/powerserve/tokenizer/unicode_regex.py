r"""Regular expressions with Unicode classes (`\p{L}`), on top of the standard `re` module.

Published pre-tokenisers are written with classes that `re` lacks. Spelling out the thousands of
ranges would make patterns slow to compile, so the text is *collapsed* instead: every non-ASCII
character is replaced by one representative of its class, which keeps all offsets, and the pattern
then needs one character per class. The trick is llama.cpp's; ours keeps the sub-classes Lu, Ll, …
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

# Unicode's White_Space property; unlike Python's `\s` it leaves out U+001C … U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

# One non-ASCII character stands for each class; any would do, these belong to their class.
_REPRESENTATIVES = {
    "Lu": "\u00c0", "Ll": "\u00e0", "Lt": "\u01c5", "Lm": "\u02b0", "Lo": "\u00aa",
    "M": "\u0300", "Nd": "\u0660", "N": "\u00b2", "P": "\u00a1", "S": "\u00a2",
    "Z": "\u2003", "C": "\u0080",
}  # fmt: skip

# What each class matches in a collapsed text: its ASCII members, then its representatives.
_CLASSES = {
    "L": "A-Za-z\u00c0\u00e0\u01c5\u02b0\u00aa",
    "Lu": "A-Z\u00c0",
    "Ll": "a-z\u00e0",
    "Lt": "\u01c5",
    "Lm": "\u02b0",
    "Lo": "\u00aa",
    "M": "\u0300",
    "N": "0-9\u0660\u00b2",
    "P": r"!-#%-*,-/:;?@\[-\]_{}" + "\u00a1",
    "S": r"$+<=>\^`|~" + "\u00a2",
}
_ESCAPE = re.compile(r"\\p\{(\w+)\}|\\.|[\[\]]", re.DOTALL)


class UnicodeRegex:
    r"""A compiled pattern that may use `\p{…}` (classes above), `\s` and `\S` (Unicode's).

    A pattern holds either `\p{…}` or literal non-ASCII characters: the latter vanish from a
    collapsed text. `\S` may not stand inside brackets. Matching is thread-safe.
    """

    def __init__(self, pattern: str) -> None:
        self._collapses = "\\p{" in pattern
        if self._collapses and not pattern.isascii():
            raise ValueError(f"classes and non-ASCII literals in one pattern: {pattern!r}")
        self._compiled = re.compile(_to_standard_syntax(pattern))

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the matches and, as pieces of their own, what lies between; joined: `text`."""
        end = 0
        for match in self._compiled.finditer(self._subject(text)):
            start, stop = match.span()
            if start > end:
                yield text[end:start]
            if stop > start:
                yield text[start:stop]
            end = stop
        if end < len(text):
            yield text[end:]

    def _subject(self, text: str) -> str:
        if not self._collapses or text.isascii():
            return text
        return text.translate(_COLLAPSED)


def _to_standard_syntax(pattern: str) -> str:
    """Spell the Unicode escapes of `pattern` out as classes of collapsed text."""
    depth = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal depth
        token = match.group()
        if token in "[]":
            depth += 1 if token == "[" else -1
            return token
        if token == r"\S":
            return f"[^{WHITESPACE}]"
        members = WHITESPACE if token == r"\s" else _CLASSES.get(match.group(1) or "")
        if members is None:
            return token
        return members if depth else f"[{members}]"

    return _ESCAPE.sub(replace, pattern)


class _Collapsed(dict[int, str]):
    """A table for `str.translate` that learns a character's representative when it is met."""

    def __missing__(self, code_point: int) -> str:
        character = chr(code_point)
        representative = character if code_point < 0x80 else _representative(character)
        self[code_point] = representative
        return representative


def _representative(character: str) -> str:
    if character == "\x85":  # the one white-space character that Unicode files under controls
        return _REPRESENTATIVES["Z"]
    category = unicodedata.category(character)
    return _REPRESENTATIVES.get(category) or _REPRESENTATIVES[category[0]]


_COLLAPSED = _Collapsed()
