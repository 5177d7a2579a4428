"""Printing a model's text, which is untrusted: on a terminal it must not work the terminal.

Escape sequences move the cursor, rename the window, or make it type what they like. A model can be
talked into writing them, by a prompt or by a document in it.
"""

from __future__ import annotations

from typing import TextIO

_PICTURES = 0x2400  # U+2400 to U+241F are pictures of the control characters 0x00 to 0x1F
_DELETE = 0x7F
_NEXT_SET = range(0x80, 0xA0)  # C1: 0x9B is an escape sequence's beginning in one character

_SHOWN = (
    {code: chr(_PICTURES + code) for code in range(0x20)}
    | {_DELETE: "␡"}
    | {code: "\N{REPLACEMENT CHARACTER}" for code in _NEXT_SET}
    | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}
)


def visible(text: str) -> str:
    """`text` with control characters made harmless and visible; newlines and tabs stay."""
    return text.translate(_SHOWN)


class TextPrinter:
    """Writes pieces of text as they come: made harmless on a terminal, unchanged elsewhere."""

    def __init__(self, stream: TextIO | None) -> None:
        """`stream` is None where the program was started with that stream closed."""
        self._stream = stream
        self._is_terminal = stream is not None and stream.isatty()

    def write(self, text: str) -> None:
        """Print `text` now."""
        if self._stream is not None:
            self._stream.write(visible(text) if self._is_terminal else text)
            self._stream.flush()
