"""What requests for chat and for completions have in common."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from powerserve.engine.sequence import FinishReason
from powerserve.server.errors import invalid
from powerserve.server.events import Ended
from powerserve.server.openai.formats import GrammarFields

# Fields that have our names, and those that have other servers'.
_OURS = (
    *("temperature", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"),
    *("min_keep", "repeat_penalty", "frequency_penalty", "presence_penalty", "penalty_last_n"),
    *("penalize_nl", "ignore_eos"),
)
_RENAMED = {
    "typical": "typical_p",
    "repetition_penalty": "repeat_penalty",
    "repeat_last_n": "penalty_last_n",
}
_RANDOM_SEED = -1  # llama.cpp's
_NO_LIMIT = -1  # llama.cpp's
DONE = b"data: [DONE]\n\n"


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool = False


class GenerationFields(GrammarFields, kw_only=True):
    """Fields that both have: OpenAI's, then those that other servers added."""

    model: str = ""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float | bool] | None = None

    n_predict: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    typical: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    min_keep: int | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    penalty_last_n: int | None = None
    repeat_last_n: int | None = None
    penalize_nl: bool | None = None
    ignore_eos: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def num_choices(self) -> int:
        """`n`. Raises ApiError if it is not positive."""
        if self.n is not None and self.n < 1:
            raise invalid(f"n must be at least 1, not {self.n}", "n")
        return self.n or 1

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets. Raises ApiError."""
        given = {name: getattr(self, name) for name in _OURS}
        for theirs, ours in _RENAMED.items():
            if (value := getattr(self, theirs)) is not None:
                given[ours] = value
        given["max_tokens"] = None if max_tokens == _NO_LIMIT else max_tokens
        given["logprobs"] = logprobs
        given["top_k"] = None if self.top_k is None else max(0, self.top_k)  # -1: off, as elsewhere
        changes = {name: value for name, value in given.items() if value is not None}
        if self.seed is not None:  # OpenAI's are signed
            changes["seed"] = None if self.seed == _RANDOM_SEED else self.seed % 2**64
        if self.stop:
            changes["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if self.logit_bias:
            changes["logit_bias"] = _biases(self.logit_bias)
        return changes


def new_id(prefix: str) -> str:
    """A fresh id, such as `chatcmpl-…`; says nothing about other requests."""
    return f"{prefix}-{secrets.token_hex(12)}"


def finish_reason(ended: Ended) -> str:
    """OpenAI's word for why a text ended."""
    return "stop" if ended.reason is FinishReason.STOP else "length"


def refuse_given(body: msgspec.Struct, advice: Mapping[str, str]) -> None:
    """Raise ApiError if one of these fields has a value that means something.

    `advice` says, for each, what to do instead.
    """
    for name, what in advice.items():
        if getattr(body, name):
            raise invalid(f"this server does not support `{name}`{what and '; '}{what}", name)


def _biases(given: Mapping[str, float | bool]) -> dict[int, float]:
    """Token ids to biases; `false` is llama.cpp's “never”."""
    biases = {}
    for text, bias in given.items():
        if not text.isdecimal():
            raise invalid(f"logit_bias must name tokens by their ids, not {text!r}", "logit_bias")
        if bias is True:
            raise invalid("logit_bias: a bias is a number, or false for never", "logit_bias")
        biases[int(text)] = float("-inf") if bias is False else float(bias)
    return biases
