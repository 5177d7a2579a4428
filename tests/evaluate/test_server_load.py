"""The load generator: against a server whose every word is known, and against our own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from chat_stub import ChatStub, StubAnswer, chat_stub, says
from powerserve.core.errors import UsageError
from powerserve.evaluate.server_load.chat_request import ChatRecord, _events, timed_chat
from powerserve.evaluate.server_load.plan import LoadPlan
from powerserve.evaluate.server_load.prompts import chat_body
from powerserve.evaluate.server_load.run import LoadRun, check_target, interleaved
from powerserve.evaluate.server_load.summary import summarise
from powerserve.evaluate.server_load.target import Target
from server_process import serving, wait_until
from tiny_models import TinyModel, write_tiny_model


@pytest.fixture
def stub() -> Iterator[ChatStub]:
    with chat_stub() as running:
        yield running


def ask(stub: ChatStub, timeout_s: float = 20) -> ChatRecord:
    return asyncio.run(timed_chat(Target(stub.url), {"messages": []}, timeout_s))


def executed(stub: ChatStub, plan: LoadPlan) -> LoadRun:
    run = LoadRun(Target(stub.url), plan)
    asyncio.run(run.execute())
    return run


class TestOneChat:
    def test_every_piece_has_its_time(self, stub: ChatStub) -> None:
        stub.answer = says("a", "b", "c", "d")
        record = ask(stub)
        times = [record.began_s, *record.arrivals_s, record.ended_s]
        assert len(record.arrivals_s) == 4 and times == sorted(times)
        assert record.first_token_s == times[1] - times[0]
        assert record.gaps_s == [later - earlier for earlier, later in pairwise(times[1:5])]
        assert (record.error, record.num_prompt_tokens, record.num_generated) == (None, 7, 4)

    def test_the_first_piece_does_not_wait_for_the_last(self, stub: ChatStub) -> None:
        gate = threading.Event()
        stub.answer = says("first", "last", gate=gate)
        opener = threading.Timer(0.3, gate.set)
        opener.start()
        record = ask(stub)
        opener.join()
        (gap,) = record.gaps_s
        assert gap > record.first_token_s

    def test_the_server_counts_tokens_where_it_does(self, stub: ChatStub) -> None:
        usage = {
            "prompt_tokens": 50,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 40},
        }
        deltas = ({"reasoning_content": "hm"}, {"content": "two tokens"})
        stub.answer = StubAnswer(deltas, usage)
        record = ask(stub)
        counts = (record.num_prompt_tokens, record.num_cached_tokens, record.num_generated)
        assert counts == (50, 40, 9) and len(record.arrivals_s) == 2
        stub.answer = StubAnswer(deltas)
        assert ask(stub).num_generated == 2

    @pytest.mark.parametrize(
        ("answer", "kind", "detail"),
        [
            (StubAnswer(status=503, error="full"), "status 503", "full"),
            (says("half", error="engine"), "error in the stream", "engine"),
            (says("half", is_cut=True), "connection broken", ""),
            (says(), "no text", ""),
            (says("late", gate=threading.Event()), "timeout", ""),
        ],
    )
    def test_errors_have_kinds(
        self, stub: ChatStub, answer: StubAnswer, kind: str, detail: str
    ) -> None:
        stub.answer = answer
        record = ask(stub, timeout_s=0.5 if answer.gate else 20)
        assert (record.error, record.detail) == (kind, detail)

    def test_nobody_there(self) -> None:
        record = asyncio.run(timed_chat(Target("http://127.0.0.1:1"), {}, 20))
        assert record.error == "connection refused"

    @pytest.mark.parametrize("step", [1, 3, 1000])
    def test_events_may_be_cut_anywhere(self, step: int) -> None:
        text = b': hello\ndata: {"a": 1}\n\nevent: x\r\ndata:{}\r\n\r\ndata: [DONE]\n\n'

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(text), step):
                yield text[start : start + step]

        async def collect() -> list[bytes]:
            return [event async for event in _events(pieces())]

        assert asyncio.run(collect()) == [b'{"a": 1}', b"{}", b"[DONE]"]


class TestTarget:
    @pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://x:99999"])
    def test_what_is_no_url(self, url: str) -> None:
        with pytest.raises(UsageError, match="is not the URL of a server"):
            Target(url)

    @pytest.mark.parametrize(
        ("url", "place"),
        [
            ("http://a:8080", ("a", 8080, "/v1/chat/completions")),
            ("http://a/v1/", ("a", 80, "/v1/chat/completions")),
            ("https://a/llm/v1", ("a", 443, "/llm/v1/chat/completions")),
            ("http://[::1]:81", ("::1", 81, "/v1/chat/completions")),
        ],
    )
    def test_where_chats_go(self, url: str, place: tuple[str, int, str]) -> None:
        target = Target(url)
        assert (target.host, target.port, target.chat_path) == place

    def test_the_key_is_sent_and_not_shown(self, stub: ChatStub) -> None:
        stub.key = "secret"
        target = Target(stub.url, api_key="secret")
        assert asyncio.run(timed_chat(target, {}, 20)).error is None
        assert "secret" not in repr(target)

    def test_what_the_server_says_is_passed_on(self, stub: ChatStub) -> None:
        stub.key = "secret"
        with pytest.raises(UsageError, match="status 401: a valid API key is needed"):
            asyncio.run(check_target(Target(stub.url), 20))


class TestPrompts:
    def test_they_have_the_length_and_are_repeatable(self) -> None:
        plan = LoadPlan(prompt_words=20, max_tokens=5, seed=1)
        (message,) = chat_body(plan, 0, "")["messages"]
        assert message["role"] == "user" and len(message["content"].split()) == 20
        assert chat_body(plan, 0, "") == chat_body(plan, 0, "") != chat_body(plan, 1, "")
        assert chat_body(plan, 0, "m")["model"] == "m" and "model" not in chat_body(plan, 0, "")

    def test_prefixes_are_shared_or_not(self) -> None:
        def systems(seed: int, **words: int) -> list[str]:
            plan = LoadPlan(seed=seed, **words)
            messages = [chat_body(plan, index, "")["messages"] for index in range(3)]
            assert len({turns[1]["content"] for turns in messages}) == 3
            return [turns[0]["content"] for turns in messages]

        shared = systems(1, shared_words=30)
        assert len(set(shared)) == 1 and len(shared[0].split()) == 30
        assert systems(2, shared_words=30) != shared
        assert len(set(systems(1, distinct_words=30))) == 3

    def test_contradictions(self) -> None:
        with pytest.raises(UsageError, match="shared or distinct"):
            LoadPlan(shared_words=1, distinct_words=1)
        with pytest.raises(UsageError, match="number of requests or a duration"):
            LoadPlan(num_requests=None)


class TestRuns:
    def test_clients_ask_at_the_same_time(self, stub: ChatStub) -> None:
        gate = threading.Event()
        stub.answer = says("a", gate=gate)
        plan = LoadPlan(num_requests=7, num_clients=3, num_warm_up=0)
        thread = threading.Thread(target=executed, args=(stub, plan))
        thread.start()
        wait_until(lambda: stub.num_running == 3)
        gate.set()
        thread.join()
        assert stub.max_running == 3 and len(stub.bodies) == 7

    def test_arrivals_do_not_wait_for_answers(self, stub: ChatStub) -> None:
        gate = threading.Event()
        stub.answer = says("a", gate=gate)
        plan = LoadPlan(num_requests=6, num_clients=1, rate=200, num_warm_up=0)
        thread = threading.Thread(target=executed, args=(stub, plan))
        thread.start()
        wait_until(lambda: stub.num_running == 6)
        gate.set()
        thread.join()
        assert len(stub.bodies) == 6

    def test_warming_up_does_not_count(self, stub: ChatStub) -> None:
        run = executed(stub, LoadPlan(num_requests=4, num_clients=2, num_warm_up=3))
        assert len(run.records) == 4 and len(stub.bodies) == 7
        contents = [body["messages"][0]["content"] for body in stub.bodies]
        assert len(set(contents)) == 7
        assert all(record.began_s >= run.began_s for record in run.records)

    @pytest.mark.parametrize("rate", [None, 50.0])
    def test_a_duration_ends_it(self, stub: ChatStub, rate: float | None) -> None:
        plan = LoadPlan(num_requests=None, duration_s=0.3, rate=rate, num_warm_up=0)
        run = executed(stub, plan)
        assert run.records
        assert max(record.began_s for record in run.records) < run.began_s + 0.3 + 0.1
        assert run.ended_s >= max(record.ended_s for record in run.records)

    def test_what_was_recorded_stays_when_it_is_cancelled(self, stub: ChatStub) -> None:
        run = LoadRun(Target(stub.url), LoadPlan(num_requests=None, duration_s=60))

        async def cut_short() -> None:
            task = asyncio.create_task(run.execute())
            while len(run.records) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(cut_short())
        assert len(run.records) >= 3 and run.ended_s > run.began_s

    def test_a_stopped_run_finishes_what_it_has_begun(self, stub: ChatStub) -> None:
        gate = threading.Event()
        stub.answer = says("a", "b", gate=gate)
        run = LoadRun(Target(stub.url), LoadPlan(num_requests=100, num_clients=3, num_warm_up=0))
        thread = threading.Thread(target=lambda: asyncio.run(run.execute()))
        thread.start()
        wait_until(lambda: stub.num_running == 3)
        run.stop()
        gate.set()
        thread.join()
        assert [(record.error, record.num_generated) for record in run.records] == [(None, 2)] * 3

    def test_servers_take_turns_with_the_same_new_prompts(self) -> None:
        first, second = Target("http://a"), Target("http://b")
        runs = interleaved([first, second], LoadPlan(seed=5), 3, lambda count: None)
        assert [run.target.host for run in runs] == ["a", "b", "b", "a", "a", "b"]
        assert [run.plan.seed for run in runs] == [5, 5, 6, 6, 7, 7]

    def test_our_own_server(self, tmp_path: Path) -> None:
        model = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(context_length=2048))
        with serving("-m", model) as server:
            plan = LoadPlan(num_requests=6, num_clients=3, shared_words=50, max_tokens=9)
            run = LoadRun(Target(server.url), plan)
            asyncio.run(run.execute())
        assert [record.error for record in run.records] == [None] * 6
        assert {record.num_generated for record in run.records} == {9}
        assert all(record.num_cached_tokens > 50 for record in run.records)


class TestSummary:
    def test_figures(self) -> None:
        run = LoadRun(Target("http://a"), LoadPlan(), began_s=100, ended_s=110)
        rng = np.random.default_rng(3)
        waits = rng.random((5, 8))  # of 5 requests: to the first piece, then between pieces
        for row in waits:
            arrivals = (101 + np.cumsum(row)).tolist()
            run.records.append(ChatRecord(101, arrivals, 109, 50, 10, 16))
        run.records.append(ChatRecord(101, [102.0], 103, error="status 503"))
        summary = summarise([run, run])
        assert summary.duration_s == 20 and summary.num_answered == 10
        assert summary.requests_per_s == 0.5
        assert summary.prompt_tokens_per_s == 25 and summary.generated_tokens_per_s == 8
        assert summary.mean_cached_tokens == 10
        assert summary.errors == {"status 503": 2}
        for found, expected in (
            (summary.first_token, np.repeat(waits[:, 0], 2)),
            (summary.gap, np.repeat(waits[:, 1:].ravel(), 2)),
        ):
            assert found is not None and found.count == expected.size
            assert found.p50 == pytest.approx(np.median(expected))
            assert found.p99 == pytest.approx(np.percentile(expected, 99))
            assert found.max == pytest.approx(expected.max())

    def test_nothing_answered(self) -> None:
        run = LoadRun(Target("http://a"), LoadPlan(), began_s=1, ended_s=2)
        run.records.append(ChatRecord(1, error="timeout"))
        summary = summarise([run])
        assert (summary.num_answered, summary.mean_prompt_tokens) == (0, 0)
        assert summary.first_token is None and summary.gap is None
