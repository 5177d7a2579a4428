"""A text in windows of equal length, each computed on its own, as llama.cpp measures texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from powerserve.backend.base import Int32Array
from powerserve.core.errors import UsageError
from powerserve.tokenizer.tokenizer import Tokenizer

DEFAULT_WINDOW = 512  # tokens


def text_windows(
    tokenizer: Tokenizer, text: str, window: int, max_windows: int | None = None
) -> Int32Array:
    """The tokens of `text` as [windows, window]; what does not fill a window is dropped.

    A model that wants a token at the start of texts gets it in place of each window's first.
    Raises UsageError if there is not enough text.
    """
    return split_windows(tokenizer.encode(text), window, _first_token(tokenizer), max_windows)


def split_windows(
    token_ids: Sequence[int], window: int, first_token: int | None, max_windows: int | None = None
) -> Int32Array:
    """As `text_windows`, from tokens; `first_token` replaces the first of each window."""
    num_windows = len(token_ids) // window
    if num_windows == 0:
        raise UsageError(
            f"the text has {len(token_ids)} tokens, but one window has {window}; "
            "give a longer text or a smaller window (-c)"
        )
    num_windows = min(num_windows, max_windows or num_windows)
    windows = np.array(token_ids[: num_windows * window], np.int32).reshape(num_windows, window)
    if first_token is not None:
        windows[:, 0] = first_token
    return windows


def _first_token(tokenizer: Tokenizer) -> int | None:
    return tokenizer.special.bos if tokenizer.special.add_bos else None
