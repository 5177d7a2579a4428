"""What the engine's thread reports about a request: plain data that could cross processes."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.backend.base import FloatArray
from powerserve.engine.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token and its natural log-probability."""

    token_id: int
    text: bytes  # may be a part of a character
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A generated token, and the likeliest tokens in its place, descending."""

    chosen: TokenChance
    top: tuple[TokenChance, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The engine took the request."""

    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Prefilled:
    """So much of the prompt is computed or was cached."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class PromptScored:
    """How likely the prompt's tokens are; comes before the first piece, if it was asked for."""

    first_token: bytes  # follows nothing, so that it has no probability
    rest: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is complete and certain; empty while a character or stop string is incomplete."""

    text: str
    num_tokens: int  # generated since the piece before
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts and times of a finished generation."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, not computed again
    num_generated: int  # an end token included
    queued_s: float  # before the first step
    prefill_s: float
    decode_s: float
    num_candidates: int = 0  # of speculation, that were verified
    num_accepted: int = 0  # of them


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of a generation that came to an end."""

    reason: FinishReason
    usage: Usage
    ended_by_token: bool = False  # by an end token, rather than a stop string
    stop_text: str | None = None  # the stop string, if that was it


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a generation that could not go on."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Embedded:
    """The embedding of a text: its only event, unless it failed."""

    vector: FloatArray  # float32 [embed_dim], of length one


Event = Accepted | Prefilled | PromptScored | Piece | Ended | Failed | Embedded
