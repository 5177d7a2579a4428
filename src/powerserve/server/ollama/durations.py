"""Durations as Ollama has them: seconds or Go's (`1h30m`) in requests, nanoseconds in answers."""

from __future__ import annotations

import re
from math import inf

from powerserve.server.errors import invalid

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)"
_DURATION = re.compile(rf"([+-]?)((?:{_PART})+)")
_SECONDS = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)")
_MAX_LENGTH = 100  # characters


def keep_alive_seconds(given: str | float | None) -> float | None:
    """The seconds that `keep_alive` means, infinity for a negative one. Raises ApiError."""
    if given is None:
        return None
    seconds = _seconds(given) if isinstance(given, str) else float(given)
    return inf if seconds < 0 else seconds


def nanoseconds(seconds: float) -> int:
    """A time for an answer."""
    return round(1e9 * seconds)


def _seconds(text: str) -> float:
    if len(text) <= _MAX_LENGTH and _SECONDS.fullmatch(text):
        return float(text)
    match = _DURATION.fullmatch(text[: _MAX_LENGTH + 1])
    if match is None or len(text) > _MAX_LENGTH:
        raise invalid(
            f"keep_alive must be seconds or a duration such as 5m or 1h30m, not {text[:20]!r}",
            "keep_alive",
        )
    total_s = sum(float(amount) * _UNITS_S[unit] for amount, unit in re.findall(_PART, match[2]))
    return -total_s if match[1] == "-" else total_s
