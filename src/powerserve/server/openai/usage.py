"""Counts, timings and log-probabilities, in OpenAI's form and in that of llama.cpp's server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from powerserve.server.answer import total_usage
from powerserve.server.events import Ended, PromptScored, TokenChance, TokenLogprob, Usage
from powerserve.server.original import reported_usage


def totals(endings: Sequence[Ended], num_choices: int, compat: bool) -> dict[str, Any]:
    """The fields `usage` and `timings` for all choices of a request."""
    total = total_usage(endings, num_choices)
    return {"usage": _usage(reported_usage(total, compat)), "timings": _timings(total)}


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """`logprobs` of a choice in a chat."""
    if not logprobs:
        return None
    content = [
        _chance(each.chosen) | {"top_logprobs": [_chance(other) for other in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    logprobs: Sequence[TokenLogprob], offset: int, prompt: PromptScored | None = None
) -> dict[str, Any] | None:
    """`logprobs` of a choice in a completion.

    `offset` is that of the text behind the prompt. The tokens of a `prompt` come first; of them the
    first one has no log-probability.
    """
    answer = _token_lists(logprobs, offset)
    if prompt is None:
        return answer if logprobs else None
    lists = _token_lists(prompt.rest, 0)
    surplus = offset - sum(map(len, lists["tokens"]))  # the first token's, if that is shown
    lists["text_offset"] = [max(0, surplus + each) for each in lists["text_offset"]]
    first = {"tokens": prompt.first_token.decode("utf-8", "replace"), "text_offset": 0}
    return {name: [first.get(name), *lists[name], *answer[name]] for name in answer}


def _token_lists(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, list[Any]]:
    """One list for each thing to say about tokens; `offset` is where the first one begins."""
    offsets = []
    for each in logprobs:
        offsets.append(offset)
        offset += len(_text(each.chosen))
    return {
        "tokens": [_text(each.chosen) for each in logprobs],
        "token_logprobs": [each.chosen.logprob for each in logprobs],
        "top_logprobs": [_alternatives(each) for each in logprobs],
        "text_offset": offsets,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.num_prompt_tokens,
        "completion_tokens": usage.num_generated,
        "total_tokens": usage.num_prompt_tokens + usage.num_generated,
        "prompt_tokens_details": {"cached_tokens": usage.num_cached_tokens},
    }


def _timings(usage: Usage) -> dict[str, Any]:
    """As in llama.cpp's server: milliseconds and tokens per second."""
    num_computed = usage.num_prompt_tokens - usage.num_cached_tokens
    guesses = {"draft_n": usage.num_candidates, "draft_n_accepted": usage.num_accepted}
    return {
        "cache_n": usage.num_cached_tokens,
        **_timing("prompt", num_computed, usage.prefill_s),
        **_timing("predicted", usage.num_generated, usage.decode_s),
        **(guesses if usage.num_candidates else {}),
    }


def _alternatives(logprob: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens by text, and the chosen one, which may not be among them."""
    return {_text(each): each.logprob for each in (*logprob.top, logprob.chosen)}


def _chance(chance: TokenChance) -> dict[str, Any]:
    return {"token": _text(chance), "logprob": chance.logprob, "bytes": list(chance.text)}


def _text(chance: TokenChance) -> str:
    return chance.text.decode("utf-8", "replace")


def _timing(name: str, count: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / count if count else 0.0,
        f"{name}_per_second": count / seconds if seconds else 0.0,
    }
