"""Counts and timings, in OpenAI's form and in that of llama.cpp's server."""

from __future__ import annotations

from typing import Any

from powerserve.server.events import TokenLogprob, Usage


def usage_body(usage: Usage) -> dict[str, Any]:
    """The `usage` object."""
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_generated,
        "total_tokens": usage.num_prompt_tokens + usage.num_generated,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def timings_body(usage: Usage) -> dict[str, Any]:
    """The `timings` object of llama.cpp's server: milliseconds and tokens per second."""
    num_computed = usage.num_prompt_tokens - usage.num_cached_tokens
    return {
        "cache_n": usage.num_cached_tokens,
        **_timing("prompt", num_computed, usage.prefill_s),
        **_timing("predicted", usage.num_generated, usage.decode_s),
    }


def chance_body(logprob: TokenLogprob) -> dict[str, Any]:
    """One token in `logprobs.content` of a chat."""
    entries = [
        {
            "token": chance.text.decode("utf-8", "replace"),
            "logprob": chance.logprob,
            "bytes": list(chance.text),
        }
        for chance in (logprob.chosen, *logprob.top)
    ]
    return entries[0] | {"top_logprobs": entries[1:]}


def _timing(name: str, count: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / count if count else 0.0,
        f"{name}_per_second": count / seconds if seconds else 0.0,
    }
