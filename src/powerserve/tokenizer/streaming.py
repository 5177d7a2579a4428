"""Text from tokens as they come, never breaking a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Turns a stream of token ids into text; one per generated sequence.

    A character whose bytes are spread over several tokens comes out whole, with its last token.
    Bytes that cannot become UTF-8 come out as U+FFFD. The pieces, with that of `finish`, add up to
    `Tokenizer.decode` of the same ids.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], space_follows: int | None) -> None:
        """Drop one space if the stream begins with the token `space_follows` (see `decode`)."""
        self._token_bytes = token_bytes
        self._space_follows = space_follows
        self._fed = False
        self._drop_space = False
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """Add a token and return the text that is complete now, possibly empty.

        Raises TokenizerError for an id outside the vocabulary.
        """
        piece = self._token_bytes(token_id)
        if not self._fed:
            self._fed = True
            self._drop_space = token_id == self._space_follows
        elif self._drop_space and piece:
            piece = piece.removeprefix(b" ")
            self._drop_space = False
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """End the stream and return what was held back: U+FFFD for an incomplete character."""
        return self._decoder.decode(b"", final=True)
