"""Sampling parameters: what is accepted, what is refused, and where they come from."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest

from powerserve.core.errors import UsageError
from powerserve.sampler import SamplingParams
from powerserve.storage.hparams import GREEDY, SamplerHparams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("typical_p", 0),
        ("xtc_probability", 2),
        ("xtc_threshold", -1),
        ("min_keep", -1),
        ("stages", ("top_k", "mirostat")),
        ("stages", ("top_k", "top_k")),
        ("stages", "top_k"),
        ("repeat_penalty", 0),
        ("frequency_penalty", math.nan),
        ("presence_penalty", math.inf),
        ("penalty_last_n", -2),
        ("penalize_nl", 1),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: math.inf}),
        ("seed", -1),
        ("seed", 2**64),
        ("max_tokens", -1),
        ("stop", ("",)),
        ("stop", "a string is not a list of strings"),
        ("logprobs", -1),
        ("logprobs", 21),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0),
        ("top_k", 0),
        ("top_p", 0),
        ("top_p", 1),
        ("min_p", 1),
        ("penalty_last_n", -1),
        ("frequency_penalty", -5),
        ("logit_bias", {3: -math.inf}),
        ("seed", 2**64 - 1),
        ("max_tokens", 0),
        ("logprobs", 20),
    ],
)
def test_values_at_the_bounds_are_accepted(name: str, value: Any) -> None:
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_the_bounds_are_part_of_the_message() -> None:
    with pytest.raises(UsageError, match="top_p must be at least 0 and at most 1, not 2"):
        SamplingParams(top_p=2)
    with pytest.raises(UsageError, match="repeat_penalty must be greater than 0, not -1"):
        SamplingParams(repeat_penalty=-1)


def test_a_callers_collections_are_copied() -> None:
    bias = {1: 2.0}
    stop = ["a"]
    params = SamplingParams(logit_bias=bias, stop=stop)  # type: ignore[arg-type]
    bias[1] = 9.0
    stop.append("b")
    assert params.logit_bias == {1: 2.0}
    assert params.stop == ("a",)


def test_params_are_plain_data() -> None:
    params = SamplingParams(logit_bias={1: 2.0}, stop=("a",), seed=3)
    assert pickle.loads(pickle.dumps(params)) == params
    assert hash(params) == hash(params.replace())


def test_replace_validates_again() -> None:
    params = SamplingParams(seed=3)
    assert params.replace(top_k=7) == SamplingParams(seed=3, top_k=7)
    with pytest.raises(UsageError, match="top_k"):
        params.replace(top_k=-7)


def test_temperature_zero_and_top_k_one_are_greedy() -> None:
    assert SamplingParams(temperature=0).is_greedy
    assert SamplingParams(top_k=1).is_greedy
    assert not SamplingParams().is_greedy


def test_hparams_without_keys_mean_the_defaults() -> None:
    assert SamplingParams.from_hparams(SamplerHparams()) == SamplingParams()


def test_hparams_of_a_new_workspace_are_greedy() -> None:
    params = SamplingParams.from_hparams(GREEDY.sampler)
    assert params.is_greedy
    assert params.seed == 0


def test_every_hparams_setting_is_taken_over() -> None:
    hparams = SamplerHparams(
        seed=5,
        temperature=0.5,
        top_p=0.6,
        top_k=7,
        min_keep=8,
        penalty_last_n=9,
        penalty_repeat=1.1,
        penalty_freq=0.2,
        penalty_present=0.3,
        penalize_nl=True,
        ignore_eos=True,
    )
    assert SamplingParams.from_hparams(hparams) == SamplingParams(
        seed=5,
        temperature=0.5,
        top_p=0.6,
        top_k=7,
        min_keep=8,
        penalty_last_n=9,
        repeat_penalty=1.1,
        frequency_penalty=0.2,
        presence_penalty=0.3,
        penalize_nl=True,
        ignore_eos=True,
    )
