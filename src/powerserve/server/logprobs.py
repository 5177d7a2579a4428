"""Log-probabilities that come out together with the text they belong to."""

from __future__ import annotations

from collections import deque

from powerserve.sampler.chain import Sampled
from powerserve.server.events import TokenChance, TokenLogprob
from powerserve.tokenizer.tokenizer import Tokenizer


class LogprobQueue:
    """Holds back the log-probabilities of tokens whose text is held back.

    A token comes out when the text that was shown reaches its first byte. Tokens of a stop string
    are never shown, so neither are their log-probabilities.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: deque[tuple[int, TokenLogprob]] = deque()  # with the offset of the first byte
        self._num_bytes = 0  # of all tokens
        self._num_shown = 0

    def push(self, sampled: Sampled) -> None:
        """Add a token that is part of the text."""
        if sampled.logprob is None:
            return
        chosen = self._chance(sampled.token_id, sampled.logprob)
        top = tuple(self._chance(token_id, logprob) for token_id, logprob in sampled.top_logprobs)
        self._held.append((self._num_bytes, TokenLogprob(chosen, top)))
        self._num_bytes += len(self._tokenizer.token_bytes(sampled.token_id))

    def release(self, text: str, *, all_shown: bool = False) -> tuple[TokenLogprob, ...]:
        """Take out what belongs to `text`, which is shown now; `all_shown`: nothing was cut off."""
        self._num_shown += len(text.encode())
        released = []
        while self._held and (all_shown or self._held[0][0] < self._num_shown):
            released.append(self._held.popleft()[1])
        return tuple(released)

    def _chance(self, token_id: int, logprob: float) -> TokenChance:
        text = self._tokenizer.token_bytes(token_id, special=True)
        return TokenChance(token_id, text, logprob)
