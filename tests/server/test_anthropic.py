"""/v1/messages as Anthropic's own client uses it, on the real model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from server_process import ServerProcess, serving
from tiny_models import write_tiny_model

MODEL = "smollm2-135m"
GRAVITY: list[dict[str, Any]] = [{"role": "user", "content": "What is gravity?"}]
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
QUESTION: dict[str, Any] = {"role": "user", "content": "What is the weather in Paris?"}
BODY: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "max_tokens": 12, "temperature": 0}
CALL = BODY | {
    "messages": [QUESTION],
    "tools": [WEATHER],
    "tool_choice": {"type": "any"},
    "max_tokens": 60,
}


class Person(BaseModel):
    """What an answer shall look like."""

    name: str
    age: int


@pytest.fixture
def claude(server: ServerProcess) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client of the server."""
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def arguments(body: dict[str, Any]) -> dict[str, Any]:
    """A body as arguments of the client, which has no parameter for the temperature any more."""
    rest = {name: value for name, value in body.items() if name != "temperature"}
    return rest | {"extra_body": {"temperature": body["temperature"]}}


def ask(client: anthropic.Anthropic, **fields: Any) -> Message:
    """A short greedy answer, unless the fields say otherwise."""
    message: Message = client.messages.create(**arguments(BODY | fields))
    return message


def text(message: Message) -> str:
    (block,) = message.content
    assert block.type == "text"
    return block.text


def events(http: httpx.Client, body: dict[str, Any]) -> list[RawMessageStreamEvent]:
    """All events of a stream, each checked against the client's types; pings are left out."""
    adapter: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
    reply = http.post("/v1/messages", json=body | {"stream": True})
    assert reply.headers["content-type"] == "text/event-stream"
    found = []
    for frame in reply.text.strip().split("\n\n"):
        event, data = frame.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert event == f"event: {value['type']}"
        if value["type"] != "ping":
            found.append(adapter.validate_python(value))
    return found


def test_the_answer_is_openai_s(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    message = ask(claude)
    other = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is gravity?"}],
        max_tokens=12,
        temperature=0,
    )
    assert text(message) == other.choices[0].message.content
    assert message.type == "message" and message.role == "assistant" and message.model == MODEL
    assert message.stop_reason == "max_tokens" and message.stop_sequence is None
    assert message.id.startswith("msg_")
    usage = message.usage
    assert other.usage is not None and usage.output_tokens == 12
    assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == other.usage.prompt_tokens


def test_a_second_answer_takes_its_prompt_from_the_cache(claude: anthropic.Anthropic) -> None:
    ask(claude)
    usage = ask(claude).usage
    assert usage.input_tokens == 1 and (usage.cache_read_input_tokens or 0) > 10


def test_events_come_in_the_documented_order(
    http: httpx.Client, claude: anthropic.Anthropic
) -> None:
    found = events(http, BODY)
    kinds = [event.type for event in found]
    deltas = len(kinds) - 5
    assert deltas > 5  # piece by piece, not all at once
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    first, last = found[0], found[-2]
    assert first.type == "message_start" and last.type == "message_delta"
    assert first.message.content == [] and first.message.stop_reason is None
    assert first.message.usage.input_tokens == 34
    assert last.delta.stop_reason == "max_tokens" and last.usage.output_tokens == 12
    assert (last.usage.input_tokens or 0) + (last.usage.cache_read_input_tokens or 0) == 34


def test_the_client_puts_a_stream_together(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(**arguments(BODY)) as stream:
        pieces = list(stream.text_stream)
        message = stream.get_final_message()
    assert "".join(pieces) == text(message) == text(ask(claude))
    assert message.stop_reason == "max_tokens" and message.usage.output_tokens == 12


def test_the_asynchronous_client(server: ServerProcess) -> None:
    async def talk() -> tuple[Message, Message]:
        async with anthropic.AsyncAnthropic(base_url=server.url, auth_token="none") as client:
            whole = await client.messages.create(**arguments(BODY))
            async with client.messages.stream(**arguments(BODY)) as stream:
                return whole, await stream.get_final_message()

    whole, streamed = asyncio.run(talk())
    assert text(whole) == text(streamed)


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    whole = text(ask(claude))
    word = whole.split()[3]
    message = ask(claude, stop_sequences=["never said", word])
    assert text(message) == whole[: whole.index(word)]
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == word


def test_the_end_of_a_turn(claude: anthropic.Anthropic) -> None:
    message = ask(claude, messages=[{"role": "user", "content": "Say hello."}], max_tokens=200)
    assert message.stop_reason == "end_turn" and message.stop_sequence is None


def test_an_answer_goes_on_where_the_last_message_ends(claude: anthropic.Anthropic) -> None:
    whole = text(ask(claude))
    begun, _, rest = whole.partition(" concept")
    assert rest
    message = ask(claude, messages=[*GRAVITY, {"role": "assistant", "content": begun}])
    assert text(message).startswith(" concept" + rest[:10])


def test_system_prompts_are_text_or_blocks(claude: anthropic.Anthropic) -> None:
    pirate = "You are a pirate. Answer in one word."
    as_text = ask(claude, system=pirate)
    as_blocks = ask(claude, system=[{"type": "text", "text": pirate}])
    assert text(as_text) == text(as_blocks) != text(ask(claude))


def test_sampling_fields_reach_the_sampler(claude: anthropic.Anthropic) -> None:
    greedy = text(ask(claude))
    assert text(ask(claude, temperature=5)) != greedy
    hot = {"temperature": 5}
    for only_the_likeliest in ({"top_k": 1}, {"top_p": 0}):
        body = arguments(BODY) | {"extra_body": hot | only_the_likeliest}
        assert text(claude.messages.create(**body)) == greedy


def test_tokens_are_counted_as_they_are_used(claude: anthropic.Anthropic) -> None:
    prompt = {name: CALL[name] for name in ("model", "messages", "tools", "tool_choice")}
    count = claude.messages.count_tokens(system="Be brief.", **prompt).input_tokens
    usage = ask(claude, **CALL | {"system": "Be brief.", "max_tokens": 1}).usage
    assert count == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_some_tool_is_called_if_one_must_be(claude: anthropic.Anthropic) -> None:
    message = ask(claude, **CALL)
    (block,) = message.content
    assert block.type == "tool_use" and block.name == "get_weather"
    assert block.input == {"city": "Paris"} and block.id.startswith("toolu_")
    assert message.stop_reason == "tool_use"
    named = ask(claude, **CALL | {"tool_choice": {"type": "tool", "name": "get_weather"}})
    assert named.content[0].type == "tool_use"


def test_no_tool_is_called_if_none_may_be(claude: anthropic.Anthropic) -> None:
    without = ask(claude, **CALL | {"tool_choice": {"type": "none"}, "max_tokens": 8})
    assert text(without) == text(ask(claude, messages=[QUESTION], max_tokens=8))


def test_a_stream_brings_the_input_in_parts(
    claude: anthropic.Anthropic, http: httpx.Client
) -> None:
    parts = [
        event.delta.partial_json
        for event in events(http, CALL)
        if event.type == "content_block_delta" and event.delta.type == "input_json_delta"
    ]
    assert len(parts) > 2 and json.loads("".join(parts)) == {"city": "Paris"}
    with claude.messages.stream(**arguments(CALL)) as stream:
        message = stream.get_final_message()
    (block,) = message.content
    assert block.type == "tool_use" and block.input == {"city": "Paris"}
    assert message.stop_reason == "tool_use"


def test_results_go_back_to_the_model(claude: anthropic.Anthropic) -> None:
    call = ask(claude, **CALL)
    block = call.content[0]
    assert block.type == "tool_use"
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "21 degrees"}
    turns = [QUESTION, {"role": "assistant", "content": [block.model_dump(exclude_none=True)]}]
    prompts: list[Any] = [[QUESTION], turns, [*turns, {"role": "user", "content": [result]}]]
    counts = [claude.messages.count_tokens(model=MODEL, messages=each) for each in prompts]
    assert counts[0].input_tokens < counts[1].input_tokens < counts[2].input_tokens
    assert ask(claude, messages=prompts[2]).content


def test_an_answer_of_a_form(claude: anthropic.Anthropic) -> None:
    asked = [{"role": "user", "content": "Make up a person, as JSON."}]
    message = claude.messages.parse(
        **arguments(BODY | {"messages": asked, "max_tokens": 60}), output_format=Person
    )
    assert isinstance(message.parsed_output, Person)


def test_models_are_listed_to_both_clients(
    claude: anthropic.Anthropic, client: openai.OpenAI
) -> None:
    (model,) = claude.models.list()
    assert model.id == MODEL == next(iter(client.models.list())).id
    assert claude.models.retrieve(MODEL).created_at == model.created_at
    with pytest.raises(anthropic.NotFoundError, match="nothing"):
        claude.models.retrieve("nothing")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": []}]}, "with content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\].role"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "smell"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "send text only"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "other"}}, "other"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice needs"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_2025"),
        ({"stop_sequences": [""]}, "empty string"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"temperature": -1}, "temperature must be at least 0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    http: httpx.Client, fields: dict[str, Any], words: str
) -> None:
    body = {name: value for name, value in (BODY | fields).items() if value is not None}
    reply = http.post("/v1/messages", json=body)
    assert reply.status_code == 400
    assert reply.json()["type"] == "error"
    error = anthropic.types.InvalidRequestError.model_validate(reply.json()["error"])
    assert re.search(words, error.message)


def test_an_unknown_model(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match=MODEL) as caught:
        ask(claude, model="claude")
    assert caught.value.type == "not_found_error"


def test_keys_in_either_header(tmp_path: Any) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.gguf")
    with serving("-m", tiny, environment={"POWERSERVE_API_KEY": "secret"}) as process:
        body = arguments(BODY | {"model": "tiny", "max_tokens": 1})
        for key in ({"api_key": "secret"}, {"auth_token": "secret"}):
            with anthropic.Anthropic(base_url=process.url, **key) as client:  # type: ignore[arg-type]
                assert client.messages.create(**body).content
        with (
            anthropic.Anthropic(base_url=process.url, api_key="wrong") as client,
            pytest.raises(anthropic.AuthenticationError) as caught,
        ):
            client.messages.create(**body)
        assert caught.value.type == "authentication_error"
