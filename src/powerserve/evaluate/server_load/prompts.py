"""Conversations of a given length, the same for the same seed."""

from __future__ import annotations

import random
from typing import Any

from powerserve.evaluate.server_load.plan import LoadPlan

# Frequent enough to be a token of their own, together with the space before them.
_FREQUENT = (
    "the of and to in is that for it was on are as with they be at one have this from or had by "
    "but not what all were when we there can an your which their said if do will each about how "
    "up out them then she many some so these would other into has more her two like him see time "
    "could no make than first been its who now people my made over did down only way find use may "
    "water long little very after words called just where most know"
)
_WORDS = _FREQUENT.split()


def chat_body(plan: LoadPlan, index: int, model: str) -> dict[str, Any]:
    """The request with this number; numbers below zero are those of the warm-up."""
    body: dict[str, Any] = {
        "messages": _messages(plan, index),
        "max_tokens": plan.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if plan.ignore_eos:
        body["ignore_eos"] = True
    return body | {"model": model} if model else body


def _messages(plan: LoadPlan, index: int) -> list[dict[str, str]]:
    question = {"role": "user", "content": _text(plan.prompt_words, f"{plan.seed} {index} user")}
    if plan.shared_words:
        system = _text(plan.shared_words, f"{plan.seed} shared")
    elif plan.distinct_words:
        system = _text(plan.distinct_words, f"{plan.seed} {index} distinct")
    else:
        return [question]
    return [{"role": "system", "content": system}, question]


def _text(num_words: int, seed: str) -> str:
    return " ".join(random.Random(seed).choices(_WORDS, k=num_words))
