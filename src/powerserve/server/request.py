"""The neutral request that every API family translates to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from powerserve.core.errors import UsageError
from powerserve.sampler.grammar import Grammar
from powerserve.sampler.params import SamplingParams
from powerserve.server.bounds import check_bounds
from powerserve.server.tool_calls import ToolDefinition, select_tool

Message = Mapping[str, Any]


class ToolUse(Enum):
    """Whether the answer may be, or must be, a call of a tool."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools a request offers. Raises UsageError for a use that they do not allow."""

    definitions: Sequence[ToolDefinition] = ()
    use: ToolUse = ToolUse.AUTO
    name: str | None = None  # the tool to call, whatever the model would like
    parallel: bool = False  # several calls where one is forced; a free model does as it likes

    def __post_init__(self) -> None:
        if self.name is not None:
            select_tool(self.definitions, self.name)
        elif self.is_forced and not self.definitions:
            raise UsageError("a call is required, but there are no tools")

    @property
    def is_forced(self) -> bool:
        """Whether the answer must be a call."""
        return self.name is not None or self.use is ToolUse.REQUIRED

    @property
    def offered(self) -> Sequence[ToolDefinition]:
        """The tools that the model is told of."""
        return () if self.use is ToolUse.NONE else self.definitions

    @property
    def forced(self) -> Sequence[ToolDefinition]:
        """The tools of which one must be called; none if that is left to the model."""
        if self.name is not None:
            return [select_tool(self.definitions, self.name)]
        return self.definitions if self.is_forced else ()


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation, with messages in OpenAI's form; the model's template renders it.

    Raises UsageError for variables that are none of the template's.
    """

    messages: Sequence[Message]
    tools: Tools = field(default_factory=Tools)
    variables: Mapping[str, Any] = field(default_factory=dict)  # for the template
    prefill: str = ""  # how the answer begins, whatever the model would like

    def __post_init__(self) -> None:
        for name in ("messages", "tools"):
            if name in self.variables:
                raise UsageError(f"{name} cannot be set as a variable of the chat template")


def split_prefill(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The messages without a last one of the assistant's, and that one's text, to be continued."""
    last = messages[-1]
    if last["role"] != "assistant" or "tool_calls" in last or len(messages) == 1:
        return messages, ""
    return messages[:-1], last["content"]


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

    Raises UsageError or ApiError for impossible sampling parameters.
    """

    model: str  # "": the default one
    prompts: Sequence[Prompt]
    sampling: Mapping[str, Any] = field(default_factory=dict)  # fields of SamplingParams given
    num_choices: int = 1
    grammar: Grammar | None = None
    score_prompts: bool = False  # say how likely the prompts' tokens are
    keep_alive_s: float | None = None  # of the model, afterwards; None: as the settings say

    def __post_init__(self) -> None:
        SamplingParams(**self.sampling)  # a mistake shall not wait for a model to load
        check_bounds(self.sampling)

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
            wanted = max_tokens if params.max_tokens is None else params.max_tokens
            params = params.replace(max_tokens=min(wanted, max_tokens))
        if params.seed is None:
            return [params] * self.num_choices
        return [
            params.replace(seed=(params.seed + index) % 2**64) for index in range(self.num_choices)
        ]
