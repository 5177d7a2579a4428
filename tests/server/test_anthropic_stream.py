"""Blocks of an answer as events, where the real model would not write them: reasoning, errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

from anthropic.types import RawMessageStreamEvent
from pydantic import TypeAdapter

from powerserve.engine.sequence import FinishReason
from powerserve.server.answer import Answer, Delta
from powerserve.server.anthropic.endings import ending
from powerserve.server.anthropic.errors import error_frame
from powerserve.server.anthropic.stream import MessageStream
from powerserve.server.content import Content, PlainText, ToolCallDelta
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.events import Ended, Piece, Usage
from powerserve.server.mailbox import Mailbox
from powerserve.server.model_runner import ModelRunner, OpenGeneration

USAGE = Usage(10, 4, 7, 0.0, 0.1, 0.2)
CONTENTS = (
    Content(reasoning="Let me"),
    Content(reasoning=" see."),
    Content("It is"),
    Content(" so.", tool_calls=(ToolCallDelta(0, "call_1", "first"),)),
    Content(tool_calls=(ToolCallDelta(0, arguments='{"a":'), ToolCallDelta(0, arguments=" 1}"))),
    Content(tool_calls=(ToolCallDelta(1, "call_2", "second"),)),
    Content("Done."),
)


class FixedAnswer:
    """An answer that is known beforehand."""

    num_prompt_tokens = 10
    runner = SimpleNamespace(name="model")

    async def deltas(self, pause_s: float) -> AsyncIterator[Delta]:
        for content in CONTENTS:
            yield Delta(0, content)
        yield Delta(0, ended=Ended(FinishReason.STOP, USAGE))


def events(*, shows_thinking: bool = True) -> list[dict[str, Any]]:
    """What a client gets of it, without pings; all fits the client's types."""

    @asynccontextmanager
    async def opening() -> AsyncIterator[Answer]:
        yield cast(Answer, FixedAnswer())

    async def frames() -> list[bytes]:
        base = {"id": "msg_1", "type": "message", "role": "assistant", "model": ""}
        stream = MessageStream(base, shows_thinking=shows_thinking)
        return [frame async for frame in stream.frames(opening())]

    values = [json.loads(frame.partition(b"data: ")[2]) for frame in asyncio.run(frames())]
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    values = [value for value in values if value["type"] != "ping"]
    for value in values:
        adapter.validate_python(value)
    return values


def shortened(event: dict[str, Any]) -> str:
    match event:
        case {"type": "content_block_start", "index": index, "content_block": block}:
            return f"{index} {block['type']} {block.get('name', '')}".rstrip()
        case {"type": "content_block_delta", "index": index, "delta": delta}:
            kind, value = delta.values()
            return f"{index} {kind} {value}".rstrip()
        case {"type": "content_block_stop", "index": index}:
            return f"{index} stop"
    return str(event["type"])


def test_each_kind_of_content_has_its_block() -> None:
    assert [shortened(event) for event in events()] == [
        "message_start",
        "0 thinking",
        "0 thinking_delta Let me",
        "0 thinking_delta  see.",
        "0 signature_delta",
        "0 stop",
        "1 text",
        "1 text_delta It is",
        "1 text_delta  so.",
        "1 stop",
        "2 tool_use first",
        '2 input_json_delta {"a":',
        "2 input_json_delta  1}",
        "2 stop",
        "3 tool_use second",
        "3 stop",
        "4 text",
        "4 text_delta Done.",
        "4 stop",
        "message_delta",
        "message_stop",
    ]


def test_silence_is_broken_by_pings() -> None:
    """A long prefill must not look like a dead connection."""

    async def run() -> list[str]:
        arrived = asyncio.Event()
        generation = OpenGeneration(0, "model", Mailbox(arrived))
        answer = Answer(cast(ModelRunner, FixedAnswer.runner), [generation], arrived, [PlainText()])

        @asynccontextmanager
        async def opening() -> AsyncIterator[Answer]:
            yield answer

        stream = MessageStream({"model": "m"}, shows_thinking=True, ping_s=0.01)
        kinds: list[str] = []
        async for frame in stream.frames(opening()):
            kinds.append(json.loads(frame.partition(b"data: ")[2])["type"])
            if kinds.count("ping") == 4 and len(kinds) == 5:
                generation.mailbox.put(Piece("Hello", 1))
                generation.mailbox.put(Ended(FinishReason.STOP, USAGE))
        return kinds

    kinds = asyncio.run(run())
    assert kinds[:5] == ["message_start", *["ping"] * 4]
    assert [kind for kind in kinds[5:] if kind != "ping"] == [
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


def test_the_end_says_why_and_what_it_cost() -> None:
    found = events()
    assert found[0]["message"]["model"] == "model"
    delta = found[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == ("tool_use", None)
    given = {name: count for name, count in found[-2]["usage"].items() if count is not None}
    assert given == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 7,
    }


def test_thinking_is_left_out_if_nobody_wants_it() -> None:
    kinds = [shortened(event) for event in events(shows_thinking=False)]
    assert kinds[:3] == ["message_start", "0 text", "0 text_delta It is"]


def test_reasons_to_stop() -> None:
    def reason(why: FinishReason, stop_text: str | None = None) -> str:
        ended = Ended(why, USAGE, stop_text=stop_text)
        return str(ending(ended, called_tools=False)["stop_reason"])

    assert reason(FinishReason.STOP) == "end_turn"
    assert reason(FinishReason.STOP, "x") == "stop_sequence"
    assert reason(FinishReason.LENGTH) == "max_tokens"
    assert reason(FinishReason.CONTEXT) == "model_context_window_exceeded"


def test_an_error_within_a_stream_is_an_event() -> None:
    frame = error_frame(ApiError(ErrorKind.OVERLOADED, "too much"))
    event, data, *_ = frame.decode().split("\n")
    assert event == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "too much"},
    }
