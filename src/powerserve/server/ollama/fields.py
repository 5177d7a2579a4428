"""What requests for chat and for generate have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from powerserve.engine.loader import LoadedEngine
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.sampler.params import MAX_TOP_LOGPROBS
from powerserve.server.answer import Answer
from powerserve.server.errors import invalid
from powerserve.server.ollama.durations import keep_alive_seconds
from powerserve.server.ollama.options import Options
from powerserve.server.reasoning import can_reason
from powerserve.server.request import GenerationRequest, Prompt
from powerserve.server.serving import Serving

LATEST = ":latest"
_HUBS = ("hf.co/", "huggingface.co/")


class GenerationFields(msgspec.Struct, kw_only=True):
    """Fields that both have."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer comes line by line, as it does unless refused."""
        return self.stream is not False

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer has the model's thoughts, if it thinks."""
        return self.think is not False

    @property
    def keep_alive_s(self) -> float | None:
        """How long the model shall stay loaded afterwards. Raises ApiError."""
        return keep_alive_seconds(self.keep_alive)

    def variables(self) -> dict[str, Any]:
        """What templates of models that may think, or not, ask for."""
        if self.think is None:
            return {}
        effort = {"reasoning_effort": self.think} if isinstance(self.think, str) else {}
        return {"enable_thinking": bool(self.think), **effort}

    def neutral(self, prompt: Prompt) -> GenerationRequest:
        """The request in neutral form. Raises ApiError or UsageError for what cannot be done."""
        sampling = self.options.sampling() if self.options else {}
        if (top := self._top()) is not None:
            sampling["logprobs"] = top
        return GenerationRequest(
            model=model_name(self.model),
            prompts=[prompt],
            sampling=sampling,
            grammar=self._grammar(),
            keep_alive_s=self.keep_alive_s,
        )

    @asynccontextmanager
    async def answer(self, serving: Serving, prompt: Prompt) -> AsyncIterator[Answer]:
        """Have it answered, as `Serving.answer` does."""
        async with serving.answer(self.neutral(prompt)) as answer:
            if self.think and not _can_think(answer.runner.loaded):
                raise invalid(f"the model {answer.runner.name} does not support thinking", "think")
            yield answer

    def _grammar(self) -> Grammar | None:
        if not self.format:
            return None
        if isinstance(self.format, dict):
            return Grammar.from_schema(self.format)
        if self.format != "json":
            raise invalid(
                f'format must be "json" or a JSON schema, not {self.format[:50]!r}', "format"
            )
        return Grammar(GrammarKind.JSON_OBJECT)

    def _top(self) -> int | None:
        """How many alternatives to report; None: no log-probabilities. Raises ApiError."""
        top = self.top_logprobs or 0
        if not 0 <= top <= MAX_TOP_LOGPROBS:
            raise invalid(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs")
        return top if self.logprobs else None


def model_name(name: str) -> str:
    """Our name of a model: without the tag of all that have no other, and without the hub."""
    for hub in _HUBS:
        name = name.removeprefix(hub)
    return name.removesuffix(LATEST)


def _can_think(loaded: LoadedEngine) -> bool:
    return loaded.template is not None and can_reason(loaded.template.source_with_tools)
