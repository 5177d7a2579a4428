"""The texts of a conversion as tokens: system prompt, calibration, evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.errors import UsageError
from powerserve.tokenizer.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 1280
CALIBRATION_PIECE = 1920  # tokens; whatever the cache, so that it need not be done again
MIN_TOKENS = 16  # of a text that is worth calibrating or measuring with

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Texts as the model reads them, in pieces that begin alike.

    Attributes:
        start: what every piece begins with: the model's first token and the system prompt.
        system: the same if there is a system prompt, else nothing.
        calibration: pieces that begin with the system prompt.
        evaluation: pieces for the perplexity, which fit into the cache.
        is_held_out: whether calibration leaves those out.
    """

    start: TokenIds
    system: TokenIds
    calibration: tuple[TokenIds, ...]
    evaluation: tuple[TokenIds, ...]
    is_held_out: bool


@dataclass(frozen=True, slots=True)
class ConversionTexts:
    """The user's texts; at most `max_tokens` of `calibration` are used, the rest is for testing."""

    system_prompt: str
    calibration: str
    max_tokens: int = DEFAULT_MAX_TOKENS

    def encode(self, tokenizer: Tokenizer, cache_size: int) -> TextTokens:
        """Tokenise the texts for a cache of that many tokens.

        Raises:
            UsageError: the system prompt does not fit, or the calibration text is too short.
        """
        start = tuple(tokenizer.encode_chat(self.system_prompt))
        if len(start) + MIN_TOKENS > cache_size:
            raise UsageError(
                f"the system prompt has {len(start)} tokens, which leaves too little of a cache of "
                f"{cache_size}; use a shorter one"
            )
        text = tuple(tokenizer.encode(self.calibration, add_special=False))
        calibration = _pieces(start, text[: self.max_tokens], CALIBRATION_PIECE)
        if not calibration:
            raise UsageError(
                f"{min(len(text), self.max_tokens)} tokens are too few to calibrate with; use a "
                f"text of {MIN_TOKENS} or more (a thousand are good)"
            )
        rest = text[self.max_tokens :]
        is_held_out = len(rest) >= MIN_TOKENS
        evaluation = rest if is_held_out else text
        return TextTokens(
            start=start,
            system=start if self.system_prompt else (),
            calibration=calibration,
            evaluation=_pieces(start, evaluation[: self.max_tokens], cache_size),
            is_held_out=is_held_out,
        )


def _pieces(start: TokenIds, text: TokenIds, cache_size: int) -> tuple[TokenIds, ...]:
    """`text` in pieces after `start`; a last one too short to be of use is left out."""
    size = cache_size - len(start)
    pieces = [text[first : first + size] for first in range(0, len(text), size)]
    return tuple(start + piece for piece in pieces if len(piece) >= MIN_TOKENS)
