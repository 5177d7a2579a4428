"""The neutral answer that every API family translates from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field

from powerserve.engine.sequence import FinishReason
from powerserve.server.content import NOTHING, Content, ContentParser, ToolCallDelta
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.events import (
    Ended,
    Event,
    Failed,
    Piece,
    PromptScored,
    TokenLogprob,
    Usage,
)
from powerserve.server.model_runner import ModelRunner, OpenGeneration


@dataclass(frozen=True, slots=True)
class Delta:
    """What came next in one choice; the last one of a choice has `ended`."""

    choice: int
    content: Content = NOTHING
    logprobs: tuple[TokenLogprob, ...] = ()
    ended: Ended | None = None
    prompt: PromptScored | None = None


PAUSE = Delta(0)
"""Nothing has come for a while."""


@dataclass(slots=True)
class Choice:
    """A whole answer."""

    ended: Ended
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)  # each whole
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: PromptScored | None = None  # if it was asked for


class Answer:
    """One request's generations, read as they go on or as a whole."""

    def __init__(
        self,
        runner: ModelRunner,
        generations: Sequence[OpenGeneration],
        arrived: asyncio.Event,
        parsers: Sequence[ContentParser],
    ) -> None:
        """`parsers` read the generations, each its own."""
        self.runner = runner
        self._generations = generations
        self._arrived = arrived
        self._parsers = parsers
        self._early: list[tuple[int, Event]] = []

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the first prompt, once the engine has taken it."""
        return self._generations[0].num_prompt_tokens

    @property
    def opened(self) -> float:
        """When the engine was given the request, in seconds of the monotonic clock."""
        return self._generations[0].opened

    async def accepted(self) -> None:
        """Wait until the engine has taken, or refused, every choice. Raises why it refused one."""
        while not all(each.is_accepted for each in self._generations):
            self._early += await self._events()
            for _, event in self._early:
                if isinstance(event, Failed):
                    raise event.error

    async def deltas(self, pause_s: float | None = None) -> AsyncIterator[Delta]:
        """Everything in the order it comes, to the end of the last choice.

        Whenever nothing has come for `pause_s` seconds, PAUSE is between.
        """
        num_ended = 0
        while num_ended < len(self._generations):
            try:
                async with asyncio.timeout(pause_s):
                    events, self._early = self._early or await self._events(), []
            except TimeoutError:
                yield PAUSE
                continue
            for delta in self._read(events):
                num_ended += delta.ended is not None
                yield delta

    async def choices(self) -> list[Choice]:
        """All choices, when they have ended."""
        collected: list[list[Delta]] = [[] for _ in self._generations]
        async for delta in self.deltas():
            collected[delta.choice].append(delta)
        return [_whole(deltas) for deltas in collected]

    async def _events(self) -> list[tuple[int, Event]]:
        """What has arrived in all mailboxes; waits if that is nothing."""
        await self._arrived.wait()
        self._arrived.clear()
        return [
            (index, event)
            for index, generation in enumerate(self._generations)
            for event in generation.mailbox.take()
        ]

    def _read(self, events: Iterable[tuple[int, Event]]) -> Iterable[Delta]:
        for choice, event in events:
            match event:
                case Failed(error):
                    raise error
                case PromptScored():
                    yield Delta(choice, prompt=event)
                case Piece(text=text, logprobs=logprobs):
                    content = self._parsers[choice].feed(text)
                    if content or logprobs:
                        yield Delta(choice, content, logprobs)
                case Ended(reason=FinishReason.CANCELLED):
                    raise ApiError(ErrorKind.OVERLOADED, "the generation was cancelled")
                case Ended():
                    yield Delta(choice, self._parsers[choice].finish(), ended=event)


def total_usage(endings: Sequence[Ended], num_choices: int) -> Usage:
    """One usage for all, in the order of the choices; prompts count once, as clients expect."""
    all_usage = [ended.usage for ended in endings]
    first = all_usage[::num_choices]  # of each prompt
    return Usage(
        num_prompt_tokens=sum(usage.num_prompt_tokens for usage in first),
        num_cached_tokens=sum(usage.num_cached_tokens for usage in first),
        num_generated=sum(usage.num_generated for usage in all_usage),
        queued_s=max(usage.queued_s for usage in all_usage),
        prefill_s=max(usage.prefill_s for usage in all_usage),
        decode_s=max(usage.decode_s for usage in all_usage),
        num_candidates=sum(usage.num_candidates for usage in all_usage),
        num_accepted=sum(usage.num_accepted for usage in all_usage),
    )


def _whole(deltas: Sequence[Delta]) -> Choice:
    ended = deltas[-1].ended
    assert ended is not None  # `deltas` goes on until it comes
    return Choice(
        ended,
        text="".join(delta.content.text for delta in deltas),
        reasoning="".join(delta.content.reasoning for delta in deltas),
        tool_calls=joined_calls([call for delta in deltas for call in delta.content.tool_calls]),
        logprobs=[logprob for delta in deltas for logprob in delta.logprobs],
        prompt=next((delta.prompt for delta in deltas if delta.prompt is not None), None),
    )


def joined_calls(parts: Sequence[ToolCallDelta]) -> list[ToolCallDelta]:
    """The calls, each whole, that came in parts."""
    calls: dict[int, ToolCallDelta] = {}
    for part in parts:
        call = calls.get(part.index, ToolCallDelta(part.index))
        calls[part.index] = ToolCallDelta(
            part.index,
            call.call_id or part.call_id,
            call.name or part.name,
            call.arguments + part.arguments,
        )
    return list(calls.values())
