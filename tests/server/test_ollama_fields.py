"""Ollama's words for durations, options, contexts and thinking."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import ollama
import pytest

from powerserve.core.errors import DownloadError
from powerserve.engine.sequence import FinishReason
from powerserve.server.answer import Answer, Delta
from powerserve.server.content import Content, ToolCallDelta
from powerserve.server.errors import ApiError
from powerserve.server.events import Ended, Usage
from powerserve.server.ollama.chat import ChatRequest, _shape
from powerserve.server.ollama.context import Turn, decode_context, encode_context
from powerserve.server.ollama.durations import keep_alive_seconds
from powerserve.server.ollama.fields import model_name
from powerserve.server.ollama.lines import AnswerWriter
from powerserve.server.ollama.options import Options
from powerserve.server.ollama.pull_report import PullReport

USAGE = Usage(10, 4, 7, 0.0, 0.1, 0.2)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (None, None),
        (0, 0),
        (300, 300),
        (-1, inf),
        ("0", 0),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("500ms", 0.5),
        ("-1m", inf),
        ("-1", inf),
    ],
)
def test_durations(given: str | float | None, seconds: float | None) -> None:
    assert keep_alive_seconds(given) == seconds


@pytest.mark.parametrize("given", ["", "m", "5 minutes", "5m3", "1d", "--1m", "9" * 10_000 + "x"])
def test_durations_that_are_none(given: str) -> None:
    with pytest.raises(ApiError, match="keep_alive must be"):
        keep_alive_seconds(given)


def test_names() -> None:
    assert model_name("a:latest") == "a"
    assert model_name("hf.co/owner/repo:Q4_0") == "owner/repo:Q4_0"
    assert model_name("owner/repo:latest") == "owner/repo"


def test_options_under_our_names() -> None:
    given = {
        "num_predict": 5,
        "top_k": -1,
        "repeat_last_n": -1,
        "penalize_newline": True,
        "seed": -3,
        "stop": "x",
        "typical_p": 0.5,
        "num_ctx": 512,
    }
    assert msgspec.convert(given, Options).sampling() == {
        "max_tokens": 5,
        "top_k": 0,
        "penalty_last_n": -1,
        "penalize_nl": True,
        "seed": None,
        "stop": ("x",),
        "typical_p": 0.5,
    }
    assert Options(num_predict=-2).sampling() == Options(num_predict=0).sampling() == {}


def test_a_context_is_the_conversation() -> None:
    turns = [Turn("system", "Sei nett."), Turn("user", "Grüße"), Turn("assistant", "你好")]
    numbers = json.loads(json.dumps(encode_context(turns)))
    assert decode_context(numbers) == turns


@pytest.mark.parametrize("numbers", [[1], [-1], [10**30], list(b'[{"role": "tool"}]')])
def test_contexts_of_others(numbers: list[int]) -> None:
    with pytest.raises(ApiError, match="context is not one"):
        decode_context(numbers)


@pytest.mark.parametrize(
    ("think", "variables"),
    [
        (None, {}),
        (True, {"enable_thinking": True}),
        (False, {"enable_thinking": False}),
        ("high", {"enable_thinking": True, "reasoning_effort": "high"}),
    ],
)
def test_thinking_is_up_to_the_template(think: bool | str | None, variables: Any) -> None:
    message = {"role": "user", "content": "x"}
    request = msgspec.convert({"messages": [message], "think": think}, ChatRequest)
    assert request.prompt().variables == variables


def parts(*contents: Content, shows_thinking: bool = True) -> list[ollama.ChatResponse]:
    """What the client reads of a stream of this content."""

    async def deltas() -> AsyncIterator[Delta]:
        for content in contents:
            yield Delta(0, content)
        yield Delta(0, ended=Ended(FinishReason.STOP, USAGE))

    @asynccontextmanager
    async def opening() -> AsyncIterator[Answer]:
        yield cast(
            Answer, SimpleNamespace(runner=SimpleNamespace(name="m"), opened=0.0, deltas=deltas)
        )

    async def lines() -> list[bytes]:
        writer = AnswerWriter("", _shape, shows_thinking=shows_thinking)
        return [line async for line in writer.frames(opening())]

    return [ollama.ChatResponse(**json.loads(line)) for line in asyncio.run(lines())]


def test_thoughts_have_a_field_of_their_own() -> None:
    first, second, last = parts(Content(reasoning="hm"), Content("So."))
    assert first.message.thinking == "hm" and not first.message.content
    assert second.message.content == "So." and second.message.thinking is None
    assert last.done and last.done_reason == "stop" and last.model == "m"
    assert (last.prompt_eval_duration, last.eval_duration) == (100_000_000, 200_000_000)
    (answer, _) = parts(Content(reasoning="hm"), Content("So."), shows_thinking=False)
    assert answer.message.content == "So." and answer.message.thinking is None


def test_calls_come_whole_and_broken_ones_as_text() -> None:
    whole = (
        ToolCallDelta(0, "call_0", "f"),
        ToolCallDelta(0, arguments='{"a": '),
        ToolCallDelta(0, arguments="1}"),
    )
    cut_off = ToolCallDelta(1, "call_1", "g", '{"b": ')
    (message, _) = parts(*(Content(tool_calls=(each,)) for each in (*whole, cut_off)))
    (call,) = message.message.tool_calls or ()
    assert call.function.name == "f" and call.function.arguments == {"a": 1}
    assert message.message.content == '{"name": "g", "arguments": {"b": '


def test_of_a_transfer_only_the_newest_line_waits() -> None:
    async def run() -> list[dict[str, Any]]:
        report = PullReport()
        with report.transfer("file", 10, 0) as advance:
            advance(4)  # too soon after the first to be told
            advance(6)
        report.note("done")
        await asyncio.sleep(0)
        report.close()
        return [line async for line in report.lines()]

    first, second = asyncio.run(run())
    assert (first["status"], first["completed"], first["total"]) == ("pulling file", 10, 10)
    assert second == {"status": "done"}


def test_a_cancelled_transfer_ends_at_its_next_block() -> None:
    async def run() -> None:
        report = PullReport()
        with report.transfer("file", 10, 0) as advance:
            report.cancel()
            with pytest.raises(DownloadError, match="cancelled"):
                advance(10)

    asyncio.run(run())
