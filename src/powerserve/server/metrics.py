"""Counters for Prometheus: llama.cpp's names where they exist, our own beside them."""

from __future__ import annotations

import re
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from powerserve.server.events import Ended

CONTENT_TYPE = CONTENT_TYPE_LATEST
_CREATED = re.compile(rb"(# (HELP|TYPE) )?\S+_created[ {]")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The server's counters; one object per server, so that tests do not share them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, time, open files; on Linux
        self._prompt_tokens = self._counter("llamacpp:prompt_tokens", "Prompt tokens computed")
        self._prompt_seconds = self._counter("llamacpp:prompt_seconds", "Time of prefill")
        self._predicted = self._counter("llamacpp:tokens_predicted", "Tokens generated")
        self._predicted_seconds = self._counter(
            "llamacpp:tokens_predicted_seconds", "Time of decoding"
        )
        self._steps = self._counter("llamacpp:n_decode", "Steps of the engines")
        self._cached_tokens = self._counter(
            "powerserve:cached_prompt_tokens", "Prompt tokens taken from the prefix cache"
        )
        self._candidates = self._counter(
            "powerserve:draft_tokens", "Candidates of speculation that were verified"
        )
        self._accepted = self._counter(
            "powerserve:draft_tokens_accepted", "Candidates of speculation that were accepted"
        )
        self._requests = Counter(
            "powerserve:requests",
            "Requests answered, by route and status",
            ("route", "status"),
            registry=self._registry,
        )
        self._first_token = self._histogram(
            "powerserve:time_to_first_token_seconds", "From arrival to the first token"
        )
        self._duration = self._histogram(
            "powerserve:generation_seconds", "From arrival to the last token"
        )
        self._add_speeds()

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is asked for when the metrics are read."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def count_step(self) -> None:
        """A step of an engine was made."""
        self._steps.inc()

    def count_generation(self, ended: Ended) -> None:
        """A generation has ended."""
        usage = ended.usage
        computed = usage.num_prompt_tokens - usage.num_cached_tokens if usage.prefill_s else 0
        self._prompt_tokens.inc(computed)
        self._cached_tokens.inc(usage.num_cached_tokens)
        self._prompt_seconds.inc(usage.prefill_s)
        self._predicted.inc(usage.num_generated)
        self._predicted_seconds.inc(usage.decode_s)
        self._candidates.inc(usage.num_candidates)
        self._accepted.inc(usage.num_accepted)
        if usage.num_generated:
            self._first_token.observe(usage.queued_s + usage.prefill_s)
            self._duration.observe(usage.queued_s + usage.prefill_s + usage.decode_s)

    def count_request(self, route: str, status: int) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format, without the moments when each was created."""
        lines = generate_latest(self._registry).splitlines(keepends=True)
        return b"".join(line for line in lines if not _CREATED.match(line))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, registry=self._registry, buckets=_SECONDS)

    def _add_speeds(self) -> None:
        self.watch(
            "llamacpp:prompt_tokens_seconds",
            "Average speed of prefill in tokens per second",
            lambda: _ratio(self._prompt_tokens, self._prompt_seconds),
        )
        self.watch(
            "llamacpp:predicted_tokens_seconds",
            "Average speed of decoding in tokens per second",
            lambda: _ratio(self._predicted, self._predicted_seconds),
        )


def _ratio(amount: Counter, seconds: Counter) -> float:
    total_s = _value(seconds)
    return _value(amount) / total_s if total_s else 0.0


def _value(counter: Counter) -> float:
    return next(iter(counter.collect())).samples[0].value
