"""The neutral request that every API family translates to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from powerserve.sampler.grammar import Grammar
from powerserve.sampler.params import SamplingParams

Message = Mapping[str, Any]
Tool = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, in OpenAI's form of messages and tools; the model's template renders it."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)  # for the template


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """Text to continue as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """Token ids to continue as they are."""

    token_ids: Sequence[int]


Prompt = ChatPrompt | TextPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate: `num_choices` answers to each prompt.

    Raises UsageError for impossible sampling parameters.
    """

    model: str  # "": the default one
    prompts: Sequence[Prompt]
    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of SamplingParams given
    num_choices: int = 1
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        SamplingParams(**self.sampling)  # a mistake shall not wait for a model to load

    @property
    def num_generations(self) -> int:
        """Answers to all prompts."""
        return len(self.prompts) * self.num_choices

    def params(self, defaults: SamplingParams, max_tokens: int | None) -> list[SamplingParams]:
        """Sampling parameters of each choice for one prompt.

        `defaults` are the model's own, for instance from a workspace's hparams.json. Where those
        say greedy by `top_k` 1, and the request asks for a temperature, the request means it: then
        `top_k` is off. `max_tokens` is the most that the server allows.
        """
        changes = dict(self.sampling)
        if defaults.top_k == 1 and {"temperature", "top_p"} & changes.keys():
            changes.setdefault("top_k", 0)
        params = defaults.replace(**changes)
        if max_tokens is not None:
            params = params.replace(max_tokens=min(params.max_tokens or max_tokens, max_tokens))
        if params.seed is None:
            return [params] * self.num_choices
        return [
            params.replace(seed=(params.seed + index) % 2**64) for index in range(self.num_choices)
        ]
