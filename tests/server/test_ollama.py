"""/api/chat and /api/generate as Ollama's own client uses them, on the real model."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import openai
import pytest
from pydantic import BaseModel

from server_process import ServerProcess

MODEL = "smollm2-135m"
GRAVITY = [{"role": "user", "content": "What is gravity?"}]
SHORT = {"temperature": 0, "num_predict": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel, extra="forbid"):
    """What an answer shall look like."""

    name: str
    age: int


@pytest.fixture
def llama(server: ServerProcess) -> Iterator[ollama.Client]:
    """Ollama's own client of the server."""
    with ollama.Client(server.url) as client:
        yield client


def chat(client: ollama.Client, **fields: Any) -> ollama.ChatResponse:
    """A short greedy answer, unless the fields say otherwise."""
    answer: ollama.ChatResponse = client.chat(
        **{"model": MODEL, "messages": GRAVITY, "options": SHORT} | fields
    )
    return answer


def turns(city: str) -> list[dict[str, Any]]:
    """A question about the weather and the call that answers it: small models need an example."""
    call = {"function": {"name": "get_weather", "arguments": {"city": city}}}
    return [
        {"role": "user", "content": f"What is the weather in {city}?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]


def test_the_answer_is_openai_s(llama: ollama.Client, client: openai.OpenAI) -> None:
    answer = chat(llama)
    other = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is gravity?"}],
        max_tokens=12,
        temperature=0,
    )
    assert answer.message.content == other.choices[0].message.content
    assert answer.message.role == "assistant" and answer.model == MODEL
    assert answer.done and answer.done_reason == "length"
    assert other.usage is not None and answer.prompt_eval_count == other.usage.prompt_tokens
    assert answer.eval_count == 12


def test_times_are_nanoseconds_that_add_up(llama: ollama.Client) -> None:
    answer = chat(llama)
    parts = (answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    assert all(isinstance(part, int) and part > 1_000 for part in parts)
    assert sum(part or 0 for part in parts) <= (answer.total_duration or 0) < 600 * 10**9


def test_a_stream_carries_the_same_text(llama: ollama.Client) -> None:
    parts = list(chat(llama, stream=True))
    assert "".join(part.message.content for part in parts) == chat(llama).message.content  # type: ignore[attr-defined]
    assert len(parts) > 6
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]  # type: ignore[attr-defined]
    assert parts[-1].done_reason == "length" and parts[-1].eval_count == 12  # type: ignore[attr-defined]


def test_the_asynchronous_client(server: ServerProcess) -> None:
    async def talk() -> tuple[str, str]:
        client = ollama.AsyncClient(server.url)
        options: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "options": SHORT}
        whole = await client.chat(**options)
        pieces = [part.message.content async for part in await client.chat(**options, stream=True)]
        await client.close()
        return whole.message.content, "".join(pieces)

    whole, streamed = asyncio.run(talk())
    assert whole and whole == streamed


def test_streams_are_lines_unless_refused(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "Hello", "options": SHORT}
    reply = http.post("/api/generate", json=body)
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert len(lines) > 6 and lines[-1]["done"]
    whole = http.post("/api/generate", json=body | {"stream": False})
    assert whole.headers["content-type"] == "application/json"
    assert whole.json()["response"] == "".join(line["response"] for line in lines)


def test_a_name_may_have_the_tag_latest(llama: ollama.Client) -> None:
    answer = chat(llama, model=f"{MODEL}:latest")
    assert answer.model == f"{MODEL}:latest"
    assert answer.message.content == chat(llama).message.content


def test_generate_answers_like_chat(llama: ollama.Client) -> None:
    answer = llama.generate(MODEL, "What is gravity?", options=SHORT)
    assert answer.response == chat(llama).message.content
    assert answer.prompt_eval_count == chat(llama).prompt_eval_count
    with_system = llama.generate(MODEL, "What is gravity?", system="Be a pirate.", options=SHORT)
    system = {"role": "system", "content": "Be a pirate."}
    assert with_system.response == chat(llama, messages=[system, *GRAVITY]).message.content


def test_context_continues_the_conversation(llama: ollama.Client) -> None:
    first = llama.generate(MODEL, "What is gravity?", options=SHORT)
    second = llama.generate(MODEL, "Why?", context=first.context, options=SHORT)
    reply = {"role": "assistant", "content": first.response}
    messages = [*GRAVITY, reply, {"role": "user", "content": "Why?"}]
    assert second.response == chat(llama, messages=messages).message.content
    *_, last = llama.generate(MODEL, "What is gravity?", options=SHORT, stream=True)
    assert last.context == first.context


def test_raw_text_is_continued_as_it_is(llama: ollama.Client, client: openai.OpenAI) -> None:
    prompt = "The capital of France is"
    answer = llama.generate(MODEL, prompt, raw=True, options=SHORT)
    other = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, temperature=0)
    assert answer.response == other.choices[0].text
    assert answer.context is None


def test_an_answer_goes_on_where_the_last_message_ends(llama: ollama.Client) -> None:
    whole = chat(llama).message.content or ""
    begun, _, rest = whole.partition(" concept")
    message = chat(llama, messages=[*GRAVITY, {"role": "assistant", "content": begun}]).message
    assert rest and (message.content or "").startswith(" concept" + rest[:10])


def test_options_reach_the_sampler(llama: ollama.Client) -> None:
    def text(**options: Any) -> str | None:
        return chat(llama, options=SHORT | options).message.content

    greedy = text()
    hot = {"temperature": 5}
    assert text(**hot, seed=1) == text(**hot, seed=1) != text(**hot, seed=2)
    assert text(**hot, top_k=1) == text(**hot, top_k=1.0) == text(**hot, top_p=0) == greedy
    assert text(**hot, min_p=1) == greedy
    assert text(repeat_penalty=5, repeat_last_n=-1) != greedy
    assert text(mirostat=2, num_ctx=99, num_thread=1, tfs_z=0.1) == greedy  # nothing of ours
    word = (greedy or "").split()[3]
    stopped = chat(llama, options=SHORT | {"stop": [word]})
    assert stopped.message.content == (greedy or "").partition(word)[0]
    assert stopped.done_reason == "stop"


@pytest.mark.parametrize("num_predict", [-1, -2])
def test_no_limit_means_to_the_end(llama: ollama.Client, num_predict: int) -> None:
    hello = [{"role": "user", "content": "Say hello."}]
    options = {"temperature": 0, "num_predict": num_predict}
    answer = chat(llama, messages=hello, options=options)
    assert answer.done_reason == "stop" and (answer.eval_count or 0) > 3


def test_an_answer_of_a_form(llama: ollama.Client) -> None:
    asked = [{"role": "user", "content": "Make up a person, as JSON."}]
    options = {"temperature": 0, "num_predict": 60}
    fitting = chat(llama, messages=asked, format=Person.model_json_schema(), options=options)
    assert Person.model_validate_json(fitting.message.content or "")
    answer = chat(llama, messages=asked, format="json", options=SHORT)
    assert (answer.message.content or "").startswith("{")


def test_calls_of_tools_have_objects_as_arguments(llama: ollama.Client) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    messages = [*turns("Rome"), *turns("Berlin"), question]
    options = {"temperature": 0, "num_predict": 60}
    answer = chat(llama, messages=messages, tools=[WEATHER], options=options)
    (call,) = answer.message.tool_calls or ()
    assert call.function.name == "get_weather" and call.function.arguments == {"city": "Paris"}
    assert answer.done_reason == "stop" and not answer.message.content
    parts = list(chat(llama, messages=messages, tools=[WEATHER], options=options, stream=True))
    called = [part.message.tool_calls for part in parts if part.message.tool_calls]  # type: ignore[attr-defined]
    assert called == [answer.message.tool_calls]


def test_results_go_back_to_the_model(llama: ollama.Client) -> None:
    result = {"role": "tool", "tool_name": "get_weather", "content": "21 degrees"}
    before, after = (
        chat(llama, messages=[*turns("Paris"), *more], options={"num_predict": 1})
        for more in ([], [result])
    )
    assert (after.prompt_eval_count or 0) > (before.prompt_eval_count or 0)


def test_log_probabilities(llama: ollama.Client) -> None:
    answer = chat(llama, logprobs=True, top_logprobs=2)
    assert answer.logprobs is not None
    assert "".join(each.token for each in answer.logprobs) == answer.message.content
    assert all(len(each.top_logprobs or ()) == 2 for each in answer.logprobs)
    streamed = [part.logprobs or () for part in chat(llama, logprobs=True, stream=True)]  # type: ignore[attr-defined]
    assert [each.token for part in streamed for each in part] == [
        each.token for each in answer.logprobs
    ]


@pytest.mark.parametrize(
    ("path", "fields", "words"),
    [
        ("chat", {"messages": [{"role": "user", "images": ["aGk="]}]}, "reads text only"),
        ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat", {"format": "xml"}, "format must be"),
        ("chat", {"keep_alive": "soon"}, "keep_alive must be"),
        ("chat", {"think": True}, "does not support thinking"),
        ("chat", {"tools": [{"type": "function"}]}, "tools[0]"),
        ("chat", {"top_logprobs": 99}, "top_logprobs"),
        ("chat", {"options": {"temperature": -1}}, "temperature must be at least 0"),
        ("chat", {"options": {"repeat_penalty": 1e9}}, "repeat_penalty must be between"),
        ("generate", {"suffix": "end"}, "suffix"),
        ("generate", {"images": ["aGk="]}, "images"),
        ("generate", {"template": "{{ .Prompt }}"}, "template"),
        ("generate", {"context": [1, 2, 3]}, "context is not one"),
        ("generate", {"context": [1000]}, "context is not one"),
    ],
)
def test_what_cannot_be_done_is_refused(
    http: httpx.Client, path: str, fields: dict[str, Any], words: str
) -> None:
    body = {"model": MODEL, "messages": GRAVITY, "prompt": "x", "options": SHORT}
    reply = http.post(f"/api/{path}", json=body | fields)
    assert reply.status_code == 400 and words in reply.json()["error"]


def test_embeddings_are_openai_s(llama: ollama.Client, client: openai.OpenAI) -> None:
    texts = ["A cat sat on the mat.", "Interest rates rose in May."]
    vectors = llama.embed(MODEL, texts)
    for vector, text in zip(vectors.embeddings, texts, strict=True):
        other = client.embeddings.create(model=MODEL, input=text).data[0].embedding
        assert vector == pytest.approx(other, abs=1e-6)
    assert (vectors.prompt_eval_count or 0) > 10 and (vectors.total_duration or 0) > 0
    assert llama.embeddings(MODEL, texts[0]).embedding == vectors.embeddings[0]
    (short,) = llama.embed(MODEL, texts[0], dimensions=3).embeddings
    assert len(short) == 3 and math.hypot(*short) == pytest.approx(1)
    assert short == pytest.approx(
        [x * short[0] / vectors.embeddings[0][0] for x in vectors.embeddings[0][:3]]
    )


def test_an_unknown_model(llama: ollama.Client) -> None:
    for is_stream in (False, True):
        with pytest.raises(ollama.ResponseError, match=r"model not found.*nothing") as caught:
            list(chat(llama, model="nothing", stream=is_stream))
        assert caught.value.status_code == 404


def test_what_belongs_to_the_server_s_own_machine(llama: ollama.Client) -> None:
    refused: list[Any] = [
        lambda: llama.delete(MODEL),
        lambda: llama.copy(MODEL, "other"),
        lambda: llama.create("other", from_=MODEL),
        lambda: llama.push(MODEL),
        lambda: llama.pull("owner/repo"),
    ]
    for request in refused:
        with pytest.raises(ollama.ResponseError, match="on the server") as caught:
            request()
        assert caught.value.status_code == 403


def test_signs_of_life(http: httpx.Client) -> None:
    assert http.head("/").status_code == 200  # what Ollama's program asks first
    assert http.head("/api/tags").status_code == 200
    major, minor, _ = http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 12)
