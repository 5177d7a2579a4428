"""What the clients of a load test do."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One measurement: how many requests, how they arrive, how long they are.

    With `num_requests` it ends after so many, with `duration_s` no request begins later than that.
    Lengths are in words of the prompts, which are single tokens in nearly every vocabulary; the
    server's own counts are what is reported. Raises UsageError for what contradicts itself.
    """

    num_requests: int | None = 64
    duration_s: float | None = None
    num_clients: int = 4  # each asks again when it has its answer
    rate: float | None = None  # requests per second, at random times, instead of clients
    prompt_words: int = 128
    shared_words: int = 0  # of a system prompt that all requests have in common
    distinct_words: int = 0  # of a system prompt that each request has for itself
    max_tokens: int = 64
    ignore_eos: bool = True
    num_warm_up: int = 2
    timeout_s: float = 600.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.num_requests is None) == (self.duration_s is None):
            raise UsageError("a load test needs a number of requests or a duration, not both")
        if self.shared_words and self.distinct_words:
            raise UsageError("a prefix is either shared or distinct, not both")
