"""An answer as JSON objects: one for the whole, or a line for each piece and one for the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import msgspec

from powerserve.engine.sequence import FinishReason
from powerserve.server.answer import Answer, Delta, joined_calls
from powerserve.server.content import ToolCallDelta
from powerserve.server.events import Ended, TokenLogprob
from powerserve.server.ollama.durations import nanoseconds
from powerserve.server.ollama.tool_calls import split_calls
from powerserve.server.openai.usage import chat_logprobs

CONTENT_TYPE = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Part:
    """Some of an answer, or all of it."""

    text: str = ""
    thinking: str = ""
    tool_calls: Sequence[dict[str, Any]] = ()
    logprobs: Sequence[TokenLogprob] = ()


Shape = Callable[[Part], dict[str, Any]]  # where a part stands in an object
Ending = Callable[[str], dict[str, Any]]  # what the last object has besides, given the whole text


class AnswerWriter:
    """Writes one answer; chat and generate have their own shapes."""

    def __init__(
        self, model: str, shape: Shape, *, shows_thinking: bool, ending: Ending = lambda text: {}
    ) -> None:
        """`model` is the name that the client has given."""
        self._model = model
        self._shape = shape
        self._ending = ending
        self._shows_thinking = shows_thinking
        self._began = monotonic()
        self._load_s = 0.0  # until the engine is given the request
        self._texts: list[str] = []
        self._calls: list[ToolCallDelta] = []

    async def whole(self, opening: AbstractAsyncContextManager[Answer]) -> dict[str, Any]:
        """The one object."""
        async with opening as answer:
            self._open(answer)
            (choice,) = await answer.choices()
        calls, broken = split_calls(choice.tool_calls)
        part = Part(choice.text + broken, choice.reasoning, calls, choice.logprobs)
        return self._object(part) | self._last(choice.ended, part.text)

    async def frames(self, opening: AbstractAsyncContextManager[Answer]) -> AsyncIterator[bytes]:
        """All lines."""
        async with opening as answer:
            self._open(answer)
            async for delta in answer.deltas():
                for value in self._objects(delta):
                    yield json_line(value)

    def _open(self, answer: Answer) -> None:
        self._model = self._model or answer.runner.name
        self._load_s = answer.opened - self._began

    def _objects(self, delta: Delta) -> list[dict[str, Any]]:
        """What a client gets of a delta; calls come whole, so at the end."""
        content = delta.content
        self._calls += content.tool_calls
        part = Part(content.text, content.reasoning, logprobs=delta.logprobs)
        objects = self._pieces(part)
        if delta.ended is not None:
            calls, broken = split_calls(joined_calls(self._calls))
            objects += self._pieces(Part(broken, tool_calls=calls))
            last = self._last(delta.ended, "".join(self._texts))
            objects.append(self._object(Part()) | last)
        return objects

    def _pieces(self, part: Part) -> list[dict[str, Any]]:
        self._texts.append(part.text)
        has_thoughts = bool(part.thinking) and self._shows_thinking
        if part.text or has_thoughts or part.tool_calls or part.logprobs:
            return [self._object(part) | {"done": False}]
        return []

    def _object(self, part: Part) -> dict[str, Any]:
        if not self._shows_thinking:
            part = replace(part, thinking="")
        logprobs = chat_logprobs(part.logprobs)
        return (
            stamp(self._model)
            | self._shape(part)
            | ({"logprobs": logprobs["content"]} if logprobs else {})
        )

    def _last(self, ended: Ended, text: str) -> dict[str, Any]:
        usage = ended.usage
        return {
            "done": True,
            "done_reason": "stop" if ended.reason is FinishReason.STOP else "length",
            **self._ending(text),
            "total_duration": nanoseconds(monotonic() - self._began),
            "load_duration": nanoseconds(self._load_s),
            "prompt_eval_count": usage.num_prompt_tokens,
            "prompt_eval_duration": nanoseconds(usage.prefill_s),
            "eval_count": usage.num_generated,
            "eval_duration": nanoseconds(usage.decode_s),
        }


def stamp(model: str) -> dict[str, Any]:
    """What every object begins with."""
    return {"model": model, "created_at": datetime.now(UTC)}


def json_line(value: Any) -> bytes:
    """A line of a stream."""
    return msgspec.json.encode(value) + b"\n"
