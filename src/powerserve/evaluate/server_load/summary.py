"""What a load test has found, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.evaluate.server_load.chat_request import ChatRecord
from powerserve.evaluate.server_load.run import LoadRun


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution of waiting times, in seconds."""

    count: int
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Percentiles | None:
        """Linearly interpolated; None without samples."""
        if not samples:
            return None
        quantiles: list[float] = np.quantile(samples, (0.5, 0.9, 0.99, 1.0)).tolist()
        return cls(len(samples), *quantiles)


@dataclass(frozen=True, slots=True)
class LoadSummary:
    """Figures of one server. Rates are per second of the whole measurement."""

    duration_s: float
    num_answered: int
    requests_per_s: float
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    mean_prompt_tokens: float
    mean_cached_tokens: float
    mean_generated_tokens: float
    first_token: Percentiles | None
    gap: Percentiles | None
    errors: Mapping[str, int]  # how many of each kind


def summarise(runs: Sequence[LoadRun]) -> LoadSummary:
    """All runs of one server together; answers that ended in an error only count as errors."""
    duration_s = sum(run.ended_s - run.began_s for run in runs)
    records = [record for run in runs for record in run.records]
    answered = [record for record in records if record.error is None]
    prompt_tokens = sum(record.num_prompt_tokens for record in answered)
    generated = sum(record.num_generated for record in answered)
    return LoadSummary(
        duration_s=duration_s,
        num_answered=len(answered),
        requests_per_s=_ratio(len(answered), duration_s),
        prompt_tokens_per_s=_ratio(prompt_tokens, duration_s),
        generated_tokens_per_s=_ratio(generated, duration_s),
        mean_prompt_tokens=_ratio(prompt_tokens, len(answered)),
        mean_cached_tokens=_ratio(sum(each.num_cached_tokens for each in answered), len(answered)),
        mean_generated_tokens=_ratio(generated, len(answered)),
        first_token=Percentiles.of(first_token_times(answered)),
        gap=Percentiles.of(gaps(answered)),
        errors=Counter(record.error for record in records if record.error is not None),
    )


def first_token_times(records: Sequence[ChatRecord]) -> list[float]:
    """Seconds to the first piece of each answer."""
    return [record.first_token_s for record in records]


def gaps(records: Sequence[ChatRecord]) -> list[float]:
    """Seconds between the pieces of all answers."""
    return [gap for record in records for gap in record.gaps_s]


def _ratio(amount: float, base: float) -> float:
    return amount / base if base else 0.0
