"""A text in windows of equal length, each computed on its own, as llama.cpp measures texts."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import Int32Array
from powerserve.core.errors import UsageError
from powerserve.tokenizer.tokenizer import Tokenizer

DEFAULT_WINDOW = 512  # tokens
MIN_WINDOW = 4


def text_windows(
    tokenizer: Tokenizer, text: str, window: int, max_windows: int | None = None
) -> Int32Array:
    """The tokens of `text` as [windows, window]; what does not fill a window is dropped.

    Raises UsageError if there is not enough text, or the windows are too small to be of use.
    """
    if window < MIN_WINDOW:
        raise UsageError(f"a window of {window} tokens is too small; use -c {MIN_WINDOW} or more")
    token_ids = tokenizer.encode(text)
    num_windows = min(len(token_ids) // window, max_windows or len(token_ids))
    if num_windows == 0:
        raise UsageError(
            f"the text has {len(token_ids)} tokens, but one window has {window}; "
            "give a longer text or a smaller window (-c)"
        )
    return np.array(token_ids[: num_windows * window], np.int32).reshape(num_windows, window)


def started_windows(tokenizer: Tokenizer, windows: Int32Array) -> Int32Array:
    """The windows as the model wants texts to start: with its first token in place of theirs."""
    special = tokenizer.special
    if not special.add_bos or special.bos is None:
        return windows
    started = windows.copy()
    started[:, 0] = special.bos
    return started
