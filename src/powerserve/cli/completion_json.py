"""A finished answer as plain data, for `--json`."""

from __future__ import annotations

import math
from typing import Any

from powerserve.engine.generation import Completion
from powerserve.llm import LLM
from powerserve.sampler.chain import Sampled
from powerserve.tokenizer.tokenizer import Tokenizer


def as_json(llm: LLM, completion: Completion) -> dict[str, Any]:
    """A completion as values that JSON knows; `logprobs` only if the request asked for them."""
    timings = completion.timings
    data: dict[str, Any] = {
        "model": llm.loaded.source.name,
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "token_ids": completion.token_ids,
        "prompt_tokens": completion.num_prompt_tokens,
        "cached_tokens": completion.num_cached_tokens,
        "completion_tokens": len(completion.token_ids),
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
    }
    if completion.speculation is not None:
        data["speculation"] = completion.speculation.as_json()
    asked = [sample for sample in completion.samples if sample.logprob is not None]
    if asked:
        tokenizer = llm.loaded.tokenizer
        data["logprobs"] = [_sample_json(tokenizer, sample) for sample in asked]
    return data


def _sample_json(tokenizer: Tokenizer, sample: Sampled) -> dict[str, Any]:
    top = [_token_json(tokenizer, *pair) for pair in sample.top_logprobs]
    return _token_json(tokenizer, sample.token_id, sample.logprob) | {"top": top}


def _token_json(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> dict[str, Any]:
    """A token by itself: part of a character shows as U+FFFD. JSON has no infinity: it is null."""
    finite = logprob is not None and math.isfinite(logprob)
    return {
        "token_id": token_id,
        "text": tokenizer.decode([token_id], special=True),
        "logprob": logprob if finite else None,
    }
