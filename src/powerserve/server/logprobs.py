"""Log-probabilities that come out together with the text they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from powerserve.sampler.chain import Sampled
from powerserve.server.events import PromptScored, TokenChance, TokenLogprob
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
        logprob = token_logprob(self._tokenizer, sampled, sampled.logprob)
        self._held.append((self._num_bytes, logprob))
        self._num_bytes += len(self._tokenizer.token_bytes(sampled.token_id))

    def release(self, text: str, *, all_shown: bool = False) -> tuple[TokenLogprob, ...]:
        """Take out what belongs to `text`, which is shown now; `all_shown`: nothing was cut off."""
        self._num_shown += len(text.encode())
        released = []
        while self._held and (all_shown or self._held[0][0] < self._num_shown):
            released.append(self._held.popleft()[1])
        return tuple(released)


def token_logprob(tokenizer: Tokenizer, sampled: Sampled, logprob: float) -> TokenLogprob:
    """A token whose log-probability is `logprob`, and its alternatives, with their texts."""

    def chance(token_id: int, logprob: float) -> TokenChance:
        return TokenChance(token_id, tokenizer.token_bytes(token_id, special=True), logprob)

    top = tuple(chance(token_id, logprob) for token_id, logprob in sampled.top_logprobs)
    return TokenLogprob(chance(sampled.token_id, logprob), top)


def prompt_scored(tokenizer: Tokenizer, scored: Sequence[Sampled]) -> PromptScored:
    """The event for the tokens of a prompt, of which the first has no log-probability."""
    first = tokenizer.token_bytes(scored[0].token_id, special=True)
    rest = [
        token_logprob(tokenizer, each, each.logprob) for each in scored if each.logprob is not None
    ]
    return PromptScored(first, tuple(rest))
