"""Bounds on what a request may ask of the sampler, whatever API it comes through.

Values beyond these would overflow, or cost other requests time: all of them share the engine's
thread, and stop strings and biases are looked at for every token.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from powerserve.server.errors import ApiError, ErrorKind

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000  # characters
MAX_BIASES = 4096
MAX_SIZE = 100.0  # of penalties and biases; logits are smaller
MAX_TEXTS = 2048  # of one request; as in OpenAI's API
MAX_TOKENS = 1 << 20  # to turn into text, or characters to turn into tokens
MAX_NAME_LENGTH = 256  # characters of a model's name
_PENALTIES = ("repeat_penalty", "frequency_penalty", "presence_penalty")


def check_bounds(sampling: Mapping[str, Any]) -> None:
    """Raise ApiError if a field of SamplingParams, as far as it is given, is out of bounds."""
    _check_stops(sampling.get("stop", ()))
    for name in _PENALTIES:
        _check_size(name, sampling.get(name, 0.0))
    biases = sampling.get("logit_bias", {})
    _require(len(biases) <= MAX_BIASES, "logit_bias", f"must have at most {MAX_BIASES:,} entries")
    for bias in biases.values():
        if bias != -inf:  # never
            _check_size("logit_bias", bias)


def check_texts(count: int, param: str) -> None:
    """Raise ApiError if `param` has more texts than a request may have."""
    _require(count <= MAX_TEXTS, param, f"must have at most {MAX_TEXTS:,} texts, not {count:,}")


def check_length(count: int, param: str) -> None:
    """Raise ApiError if `param` is longer than what may be tokenized, or the reverse, at once."""
    _require(count <= MAX_TOKENS, param, f"must be at most {MAX_TOKENS:,} long; send it in parts")


def _check_stops(stops: tuple[str, ...]) -> None:
    _require(len(stops) <= MAX_STOPS, "stop", f"must have at most {MAX_STOPS} strings")
    for stop in stops:
        _require(
            len(stop) <= MAX_STOP_LENGTH,
            "stop",
            f"must have strings of at most {MAX_STOP_LENGTH:,} characters",
        )


def _check_size(name: str, value: float) -> None:
    _require(abs(value) <= MAX_SIZE, name, f"must be between -{MAX_SIZE:g} and {MAX_SIZE:g}")


def _require(condition: bool, param: str, rule: str) -> None:
    if not condition:
        raise ApiError(ErrorKind.INVALID_REQUEST, f"{param} {rule}", param=param)
