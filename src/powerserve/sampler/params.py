"""What a request may ask of the sampler."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from powerserve.core.errors import UsageError
from powerserve.storage.hparams import SamplerHparams

DEFAULT_STAGES = ("top_k", "typical_p", "top_p", "min_p", "xtc", "temperature")
MAX_TOP_LOGPROBS = 20  # as in OpenAI's API

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when generation ends. Raises UsageError for an impossible value."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 40  # 0: off; 1: greedy
    top_p: float = 0.95  # 1: off; 0: only the likeliest
    min_p: float = 0.0  # 0: off
    typical_p: float = 1.0  # 1: off
    xtc_probability: float = 0.0  # 0: off
    xtc_threshold: float = 0.1  # above 0.5 nothing can be excluded
    min_keep: int = 0  # tokens that top_p, min_p, typical_p and XTC leave at least
    stages: tuple[str, ...] = DEFAULT_STAGES  # the order of the filters
    repeat_penalty: float = 1.0  # 1: off
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64  # tokens the penalties look back at; -1: all, 0: off
    penalize_nl: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # -inf: never
    ignore_eos: bool = False
    seed: int | None = None  # None: another one each time
    max_tokens: int | None = None  # None: until the context is full
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many alternatives to report; None: no log-probabilities

    def __post_init__(self) -> None:
        # A caller's list or dict must not change a request that is already running.
        object.__setattr__(self, "stages", _strings("stages", self.stages))
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        self._check_filters()
        self._check_penalties()
        self._check_request()

    @classmethod
    def from_hparams(cls, hparams: SamplerHparams) -> Self:
        """Take over the `sampler` settings of a workspace's hparams.json."""
        return cls(
            temperature=hparams.temperature,
            top_k=hparams.top_k,
            top_p=hparams.top_p,
            min_keep=hparams.min_keep,
            repeat_penalty=hparams.penalty_repeat,
            frequency_penalty=hparams.penalty_freq,
            presence_penalty=hparams.penalty_present,
            penalty_last_n=hparams.penalty_last_n,
            penalize_nl=hparams.penalize_nl,
            ignore_eos=hparams.ignore_eos,
            seed=hparams.fixed_seed,
        )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated anew."""
        return dataclasses.replace(self, **changes)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen, so that no other filter matters."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits at all."""
        neutral = (
            self.repeat_penalty == 1 and self.frequency_penalty == 0 and self.presence_penalty == 0
        )
        return self.penalty_last_n != 0 and not neutral

    def _check_filters(self) -> None:
        _require_number("temperature", self.temperature, low=0)
        _require_integer("top_k", self.top_k, low=0)
        _require_number("top_p", self.top_p, low=0, high=1)
        _require_number("min_p", self.min_p, low=0, high=1)
        _require_number("typical_p", self.typical_p, above=0, high=1)
        _require_number("xtc_probability", self.xtc_probability, low=0, high=1)
        _require_number("xtc_threshold", self.xtc_threshold, low=0, high=1)
        _require_integer("min_keep", self.min_keep, low=0)
        for stage in self.stages:
            if stage not in DEFAULT_STAGES:
                known = ", ".join(DEFAULT_STAGES)
                raise UsageError(f"stages names “{stage}”, which is none of {known}")
        if len(set(self.stages)) < len(self.stages):
            raise UsageError("stages must name each filter at most once")

    def _check_penalties(self) -> None:
        _require_number("repeat_penalty", self.repeat_penalty, above=0)
        _require_number("frequency_penalty", self.frequency_penalty)
        _require_number("presence_penalty", self.presence_penalty)
        _require_integer("penalty_last_n", self.penalty_last_n, low=-1)
        _require_flag("penalize_nl", self.penalize_nl)

    def _check_request(self) -> None:
        for token_id, bias in self.logit_bias.items():
            _require_integer("logit_bias: a token id", token_id, low=0)
            if bias != -math.inf:
                _require_number(f"logit_bias of token {token_id}", bias)
        _require_flag("ignore_eos", self.ignore_eos)
        if self.seed is not None:
            _require_integer("seed", self.seed, low=0, high=_MAX_SEED)
        if self.max_tokens is not None:
            _require_integer("max_tokens", self.max_tokens, low=0)
        if "" in self.stop:
            raise UsageError("stop must not contain an empty string")
        if self.logprobs is not None:
            _require_integer("logprobs", self.logprobs, low=0, high=MAX_TOP_LOGPROBS)


def _require_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    high: float = math.inf,
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name} must be a number, not {value!r}")
    if not (math.isfinite(value) and low <= value <= high and value > above):
        raise UsageError(f"{name} must be {_bounds(low, above, high)}, not {value}")


def _require_integer(name: str, value: object, *, low: int, high: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} must be a whole number, not {value!r}")
    if not low <= value <= high:
        raise UsageError(f"{name} must be {_bounds(low, -math.inf, high)}, not {value}")


def _require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {value!r}")


def _strings(name: str, value: object) -> tuple[str, ...]:
    is_list = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    if not is_list:
        raise UsageError(f"{name} must be a list of strings, not {value!r}")
    return tuple(value)  # type: ignore[arg-type]  # the check above is out of mypy's sight


def _bounds(low: float, above: float, high: float) -> str:
    parts = []
    if low > -math.inf:
        parts.append(f"at least {low}")
    if above > -math.inf:
        parts.append(f"greater than {above}")
    if high < math.inf:
        parts.append(f"at most {high}")
    return " and ".join(parts) or "finite"
