"""`--compat`, and the original's program and paths."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server_process import ServerProcess, serving
from tiny_models import write_tiny_model

BODY = {"model": "tiny", "prompt": "hello", "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("work")
    write_tiny_model(path / "tiny.gguf")
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    home = {"POWERSERVE_HOME": str(folder / "home")}
    with serving("--work-folder", folder, "--compat", environment=home) as process:
        yield process


def test_all_paths_of_the_original(http: httpx.Client) -> None:
    for path in ("/completion", "/completions", "/v1/completions"):
        assert http.post(path, json=BODY).json()["choices"][0]["index"] == 0
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}
    for path in ("/chat/completions", "/v1/chat/completions"):
        reply = http.post(path, json=chat).json()
        assert reply["object"] == "chat.completion"
        assert reply["id"].startswith("powerserve-chat-")
    models = http.get("/v1/models").json()
    assert models["object"] == "list" and models["data"][0]["owned_by"] == "PowerServe"


def test_counts_are_steps(http: httpx.Client) -> None:
    num_prompt = len(http.post("/tokenize", json={"content": "hello"}).json()["tokens"])
    reply = http.post("/completions", json=BODY | {"max_tokens": 8, "logprobs": 0}).json()
    assert len(reply["choices"][0]["logprobs"]["tokens"]) == 7
    assert reply["usage"]["completion_tokens"] == 8
    assert reply["usage"]["prompt_tokens"] == num_prompt - 1
    assert http.post("/completions", json=BODY).json()["usage"]["completion_tokens"] == 16


def test_errors_are_flat(http: httpx.Client) -> None:
    error = http.post("/completions", json=BODY | {"model": ""}).json()
    assert error == {
        "code": 400,
        "message": "the field `model` is required",
        "type": "invalid_request_error",
    }
    assert http.get("/nowhere").json()["code"] == 404


def test_a_stream_keeps_its_framing(http: httpx.Client) -> None:
    reply = http.post("/completions", json=BODY | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    frames = reply.text.split("\n\n")
    assert frames[-1] == "" and frames[-2] == "data: [DONE]"
    assert json.loads(frames[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
