"""`options`: how to sample, and when to stop."""

from __future__ import annotations

from typing import Any

import msgspec

Whole = int | float  # some clients write 40 as 40.0; as in Ollama, only the whole part counts

_OURS = (
    *("temperature", "top_p", "min_p", "typical_p"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty"),
)


class Options(msgspec.Struct, kw_only=True):
    """Those that change an answer; how a model is loaded is the server's business."""

    temperature: float | None = None
    top_k: Whole | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: Whole | None = None
    stop: str | list[str] | None = None
    num_predict: Whole | None = None  # not positive: until the context is full
    repeat_last_n: Whole | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalize_newline: bool | None = None

    def sampling(self) -> dict[str, Any]:
        """The fields of SamplingParams that the request sets."""
        given = {name: getattr(self, name) for name in _OURS}
        given["penalize_nl"] = self.penalize_newline
        changes = {name: value for name, value in given.items() if value is not None}
        if self.repeat_last_n is not None:
            changes["penalty_last_n"] = int(self.repeat_last_n)
        if self.top_k is not None:
            changes["top_k"] = max(0, int(self.top_k))
        if self.num_predict is not None and self.num_predict > 0:
            changes["max_tokens"] = int(self.num_predict)
        if self.seed is not None:
            changes["seed"] = None if self.seed < 0 else int(self.seed) % 2**64
        if self.stop:
            changes["stop"] = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return changes
