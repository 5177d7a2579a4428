"""Models and requests that mean harm: refused with a sentence, while others are answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import tiny_models
from server_process import ServerProcess, serving

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append({'role': 'system', 'content': 'obey'}) }}",
    "{% include '/etc/passwd' %}{% import 'os' as os %}",
)


def write_model(path: Path, template: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_models, "CHATML", template)
        tiny_models.write_tiny_model(path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """With a model that is as it should be, and some whose templates are not."""
    folder = tmp_path_factory.mktemp("models")
    tiny_models.write_tiny_model(folder / "good.gguf")
    write_model(folder / "loops.gguf", LOOPS)
    for index, template in enumerate(ESCAPES):
        write_model(folder / f"escape{index}.gguf", template)
    with serving("-d", folder, "-c", "256") as process:
        yield process


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with server.client() as client:
        client.post(CHAT, json=HELLO | {"model": "good"}).raise_for_status()
        yield client


class Others:
    """Asks after the server's health for as long as something else goes on."""

    def __init__(self, server: ServerProcess) -> None:
        self.num_answers = 0
        self._server = server

    def during(self, client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
        """The reply to a request, which others have not noticed."""
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(client.post, path, json=body)
            with self._server.client() as http:
                while not future.done():
                    assert http.get("/health").status_code == 200
                    self.num_answers += not future.done()
            return future.result()


def test_a_template_of_endless_loops(server: ServerProcess, http: httpx.Client) -> None:
    others = Others(server)
    reply = others.during(http, CHAT, HELLO | {"model": "loops"})
    assert reply.status_code == 400
    assert "takes too much memory or time" in reply.json()["error"]["message"]
    assert others.num_answers > 10


@pytest.mark.parametrize("index", range(len(ESCAPES)))
def test_templates_reach_nothing_but_the_conversation(http: httpx.Client, index: int) -> None:
    """Either the template is refused, or what it asks for is nothing, an empty prompt."""
    reply = http.post(CHAT, json=HELLO | {"model": f"escape{index}"})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_requests_bring_no_templates(http: httpx.Client) -> None:
    """Neither as a field that some servers know, nor through names and variables."""
    program = "{% for x in range(999) %}{{ 7 * 7 }}{% endfor %}"
    body = HELLO | {"model": "good"}
    plain = http.post(CHAT, json=body).json()["usage"]["prompt_tokens"]
    for field in ("chat_template", "template"):
        reply = http.post(CHAT, json=body | {field: program})
        assert reply.json()["usage"]["prompt_tokens"] == plain
    variables = {"bos_token": program, "self": 1, "loop": program, "": program}
    reply = http.post(CHAT, json=body | {"chat_template_kwargs": variables})
    assert reply.json()["usage"]["prompt_tokens"] == plain
    for name in ("messages", "tools"):
        reply = http.post(CHAT, json=body | {"chat_template_kwargs": {name: []}})
        assert reply.status_code == 400 and name in reply.json()["error"]["message"]


COUNTED = "|".join(f"(?:a{{0,{n}}}b?){{0,{n}}}c" for n in range(90, 130))
DOUBLED = "".join(f"R{n}: R{n + 1} R{n + 1}\n" for n in range(60))
ALTERNATIVES = [
    {"anyOf": [{"properties": {f"{i}.{j}": {"const": j}}} for j in range(10)]} for i in range(12)
]
EXPLOSIONS = {
    "schema": {"json_schema": {"allOf": ALTERNATIVES}},
    "regex": {"regex": "(" * 50_000 + "a" + ")" * 50_000},
    "lark": {"grammar": f'start: R0\n{DOUBLED}R60: "a"'},
    "gbnf": {"grammar": "root ::= " + "(" * 9000 + '"a"' + ")" * 9000},
}


@pytest.mark.parametrize("form", EXPLOSIONS.values(), ids=EXPLOSIONS)
def test_grammars_that_explode(
    server: ServerProcess, http: httpx.Client, form: dict[str, Any]
) -> None:
    others = Others(server)
    reply = others.during(http, CHAT, HELLO | {"model": "good"} | form)
    assert reply.status_code == 400, reply.text
    assert "cannot be used" in reply.json()["error"]["message"]
    assert others.num_answers > 1


def test_a_regex_that_would_explode_as_an_automaton(http: httpx.Client) -> None:
    """It never becomes one as a whole, so it can be followed."""
    reply = http.post(CHAT, json=HELLO | {"model": "good", "regex": COUNTED})
    assert reply.status_code == 200
    assert set(reply.json()["choices"][0]["message"]["content"]) <= set("abc")


def test_a_grammar_that_explodes_while_it_is_followed(http: httpx.Client) -> None:
    explosion = 'a: b{100000}\nb: c{100000}\nc: "x"{100000}'
    grammar = f'start: ("go" | "to") a\n{explosion}'
    body = HELLO | {"model": "good", "max_tokens": 20}
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(http.post, CHAT, json=body | {"ignore_eos": True})
        reply = http.post(CHAT, json=body | {"grammar": grammar})
        assert reply.status_code == 400, reply.text
        assert "cannot be followed any further" in reply.json()["error"]["message"]
        assert other.result().json()["usage"]["completion_tokens"] == 20


TEN_MILLION = 10_000_000
TOO_MUCH: dict[str, tuple[str, dict[str, Any], str]] = {
    "one word": ("/v1/completions", {"prompt": "a" * TEN_MILLION}, "can hold"),
    "white space": ("/v1/completions", {"prompt": " " * TEN_MILLION}, "can hold"),
    "a long message": (
        CHAT,
        HELLO | {"messages": [{"role": "user", "content": "word " * (TEN_MILLION // 5)}]},
        "can hold",
    ),
    "many texts": ("/v1/completions", {"prompt": ["a"] * 1_000_000}, "at most 2,048 texts"),
    "many vectors": ("/v1/embeddings", {"input": ["a"] * 1_000_000}, "at most 2,048 texts"),
    "a text to embed": ("/v1/embeddings", {"input": "a" * TEN_MILLION}, "can hold"),
    "a text to count": ("/tokenize", {"content": "a" * TEN_MILLION}, "in parts"),
    "tokens to spell": ("/detokenize", {"tokens": [1] * 5_000_000}, "in parts"),
}


@pytest.mark.parametrize(("path", "body", "words"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_prompts_that_are_far_too_long(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    """They are refused before they are tokenized, which takes a processor for a minute."""
    reply = http.post(path, json=body | {"model": "good"})
    assert reply.status_code == 400, reply.text[:300]
    assert words in reply.json()["error"]["message"]


def test_ollama_cuts_what_is_far_too_long(http: httpx.Client) -> None:
    reply = http.post("/api/embed", json={"model": "good", "input": "a" * TEN_MILLION})
    assert reply.status_code == 200 and reply.json()["prompt_eval_count"] == 256


@pytest.mark.parametrize("name", ["+" * 100, "+" * 100_000, "good+" * 50_000, "../" * 100_000])
def test_names_of_any_length_cost_nothing(http: httpx.Client, name: str) -> None:
    reply = http.post(CHAT, json=HELLO | {"model": name})
    assert reply.status_code == 404 and len(reply.text) < 2000


def test_deep_bodies(http: httpx.Client) -> None:
    for opening in ("[", '{"a":'):
        body = json.dumps(HELLO)[:-1] + ', "tools": ' + opening * 200_000
        reply = http.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400
