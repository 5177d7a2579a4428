"""Queues, disconnects, timeouts: what one client does must not hurt the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from server_process import ServerProcess, serving, wait_until
from tiny_models import TinyModel, write_tiny_model

CHAT = "/v1/chat/completions"
LONG = {"messages": [{"role": "user", "content": "Tell me everything."}], "ignore_eos": True}


def slots(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/slots").json()
    return found


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def test_leaving_a_stream_ends_the_work(http: httpx.Client) -> None:
    with http.stream("POST", CHAT, json=LONG | {"stream": True}) as reply:
        lines = reply.iter_lines()  # kept: the stream would be closed with it
        for line in lines:
            if '"content":"' in line and "role" not in line:
                break
        running = slots(http)
        assert [slot["state"] for slot in running] == ["generating"]
        assert running[0]["prompt_tokens"] > 10 and running[0]["generated_tokens"] > 0
        assert "everything" not in json.dumps(running)
    wait_until(lambda: not slots(http))


def test_giving_up_on_a_whole_answer_ends_the_work(server: ServerProcess) -> None:
    with server.client() as http:
        with (
            httpx.Client(base_url=server.url, timeout=0.5) as hasty,
            pytest.raises(httpx.TimeoutException),
        ):
            hasty.post(CHAT, json=LONG)
        wait_until(lambda: not slots(http))


def test_a_full_queue_is_503(server: ServerProcess, http: httpx.Client) -> None:
    """Four answers at once, four that wait, and no more."""
    with ExitStack() as open_streams:
        for _ in range(8):
            client = open_streams.enter_context(server.client())
            stream = client.stream("POST", CHAT, json=LONG | {"stream": True})
            assert open_streams.enter_context(stream).status_code == 200
        states = [slot["state"] for slot in slots(http)]
        assert len(states) == 8 and states.count("waiting") >= 4
        reply = http.post(CHAT, json=LONG)
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) > 0
        assert reply.json()["error"]["type"] == "unavailable_error"
        with (
            anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude,
            pytest.raises(anthropic.APIStatusError, match="overloaded_error") as refused,
        ):
            claude.messages.create(
                model="x", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]
            )
        assert refused.value.status_code == 529  # Anthropic's own
        assert int(refused.value.response.headers["retry-after"]) > 0
        assert http.get("/health").status_code == 200
    wait_until(lambda: not slots(http))
    assert http.post(CHAT, json=LONG | {"max_tokens": 1}).status_code == 200


def test_more_choices_than_there_is_room_for(http: httpx.Client) -> None:
    reply = http.post(CHAT, json=LONG | {"n": 9})
    assert reply.status_code == 400 and "at most 8" in reply.json()["error"]["message"]


def test_each_gets_the_answer_to_its_own_question(server: ServerProcess) -> None:
    """Together as alone, with margins that rounding does not bridge."""
    capitals = ("France", "Italy", "Japan", "Germany", "Spain", "Egypt")

    def ask(country: str) -> str:
        body = {"prompt": f"The capital of {country} is", "max_tokens": 3, "temperature": 0}
        with server.client() as http:
            text: str = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
            return text

    alone = [ask(country) for country in capitals]
    with ThreadPoolExecutor(6) as threads:
        together = list(threads.map(ask, capitals * 2))
    assert together == alone * 2
    assert len(set(alone)) > 3


def test_the_metrics_count(http: httpx.Client) -> None:
    before = metric(http, "llamacpp:tokens_predicted_total")
    http.post(CHAT, json=LONG | {"max_tokens": 7})
    assert metric(http, "llamacpp:tokens_predicted_total") == before + 7
    assert metric(http, "llamacpp:predicted_tokens_seconds") > 0
    assert metric(http, "llamacpp:requests_processing") == 0


def test_an_idle_server_keeps_nothing_but_prefixes(http: httpx.Client) -> None:
    http.post(CHAT, json=LONG | {"max_tokens": 3})
    wait_until(lambda: not slots(http))
    assert metric(http, "powerserve:kv_cells") == 2048
    assert 0 < metric(http, "powerserve:kv_cells_taken") == metric(http, "powerserve:kv_cells_kept")
    assert metric(http, "powerserve:tasks") > 0


def test_tokens_there_and_back(http: httpx.Client) -> None:
    text = "Grüße, 世界! <|im_end|>"
    reply = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()
    ids = [token["id"] for token in reply["tokens"]]
    assert http.post("/detokenize", json={"tokens": ids}).json()["content"] == text
    assert any(isinstance(token["piece"], list) for token in reply["tokens"])  # part of 世
    assert http.post("/detokenize", json={"tokens": [10**9]}).status_code == 400


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a very short patience and short answers; its model never gets to an end."""
    path = tmp_path_factory.mktemp("impatient") / "slow.gguf"
    slow = TinyModel(num_layers=24, embed_dim=256, ffn_dim=1024, context_length=100_000)
    write_tiny_model(path, slow)
    flags = ("-c", "60000", "--timeout", "1", "--max-tokens", "50000", "-t", "1")
    with serving("-m", path, *flags) as process:
        yield process


def test_a_request_that_takes_too_long(impatient: ServerProcess) -> None:
    with impatient.client() as http:
        reply = http.post(CHAT, json=LONG)
        assert reply.status_code == 504 and "1 seconds" in reply.json()["error"]["message"]
        with http.stream("POST", CHAT, json=LONG | {"stream": True}) as stream:
            frames = [line for line in stream.iter_lines() if line]
        assert "1 seconds" in json.loads(frames[-1].removeprefix("data: "))["error"]["message"]
        wait_until(lambda: not slots(http))


def test_a_client_that_does_not_read(impatient: ServerProcess) -> None:
    with impatient.client() as http:
        with impatient.client() as deaf:
            stream = deaf.stream("POST", CHAT, json=LONG | {"stream": True, "logprobs": True})
            with stream:
                wait_until(lambda: bool(slots(http)))
                wait_until(lambda: not slots(http))  # by the timeout, though nothing was read
        assert http.get("/health").status_code == 200


def test_the_server_s_own_limit_of_tokens(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    with serving("-m", model, "--max-tokens", "5") as process, process.client() as http:
        for wanted in (None, 3, 100):
            body = LONG | ({} if wanted is None else {"max_tokens": wanted})
            usage = http.post(CHAT, json=body).json()["usage"]
            assert usage["completion_tokens"] == min(wanted or 5, 5)


@pytest.mark.parametrize(("flags", "remembered"), [((), False), (("--cache-tokens", "2048"), True)])
def test_a_larger_cache_remembers_more(
    tmp_path: Path, flags: tuple[str, ...], remembered: bool
) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    with serving("-m", model, "-c", "512", *flags) as process, process.client() as http:
        for token in (1, 2, 1):  # the third prompt is the first one again
            body = {"prompt": [token] * 400, "max_tokens": 1}
            usage = http.post("/v1/completions", json=body).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == (399 if remembered else 0)


def test_a_long_prompt_does_not_stall_a_running_stream(tmp_path: Path) -> None:
    """Every step of the long prompt has a token of the stream in it."""
    model = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(context_length=20_000))
    flags = ("-c", "20000", "--cache-tokens", "40000", "-b", "100", "--spec", "off")
    with serving("-m", model, *flags) as process, process.client() as http, ExitStack() as stack:
        stream = stack.enter_context(http.stream("POST", CHAT, json=LONG | {"stream": True}))
        lines = stream.iter_lines()
        next(lines)
        with process.client() as other:
            before = slots(other)[0]["generated_tokens"]
            other.post("/v1/completions", json={"prompt": [1] * 5000, "max_tokens": 1})
            after = slots(other)[0]["generated_tokens"]
        assert after - before >= 5000 // 100
