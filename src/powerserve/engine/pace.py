"""How much of the waiting prompts a step takes on while answers are running."""

from __future__ import annotations

SMALLEST_SHARE = 32  # tokens: with fewer, a prompt costs much more than it need
FIRST_SHARE = 128  # tokens, until a step has shown how fast they go
WEIGHT = 0.3  # of the newest step in the running average


class PrefillPace:
    """Bounds the gap between two tokens of an answer while others' prompts are computed.

    A running answer gets its next token when the step ends, so a step may hold only as many prompt
    tokens as this machine computes of this model in the time allowed.
    """

    def __init__(self, max_gap_s: float | None, batch_size: int) -> None:
        """Args:
        max_gap_s: how long such a step should take; None: as long as it likes.
        batch_size: tokens of the largest step.
        """
        self._max_gap_s = max_gap_s
        self._batch_size = batch_size
        self._seconds_per_token: float | None = None

    def share(self, num_decoding: int) -> int:
        """Prompt tokens for a step that also has the next tokens of `num_decoding` answers."""
        room = max(self._batch_size - num_decoding, 0)
        if self._max_gap_s is None or not num_decoding:
            return room
        if self._seconds_per_token is None:
            return min(FIRST_SHARE, room)
        affordable = int(self._max_gap_s / self._seconds_per_token)
        whole_shares = affordable // SMALLEST_SHARE * SMALLEST_SHARE  # few shapes to compile
        return min(max(whole_shares, SMALLEST_SHARE), room)

    def observe(self, num_prompt_tokens: int, seconds: float) -> None:
        """Note a step with parts of prompts: how many tokens, and how long it took."""
        if num_prompt_tokens < SMALLEST_SHARE:
            return
        cost = seconds / num_prompt_tokens
        if self._seconds_per_token is None:
            self._seconds_per_token = cost
        self._seconds_per_token += WEIGHT * (cost - self._seconds_per_token)
