"""/v1/responses as OpenAI's own client uses it, on the real model."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import Response

MODEL = "smollm2-135m"


def respond(client: openai.OpenAI, **options: object) -> Response:
    """A short greedy answer, unless the options say otherwise."""
    defaults = {
        "model": MODEL,
        "input": "What is gravity?",
        "max_output_tokens": 12,
        "temperature": 0,
    }
    return client.responses.create(**defaults | options)  # type: ignore[call-overload,no-any-return]


def chat_text(client: openai.OpenAI, messages: list[Any]) -> str | None:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=12, temperature=0
    )
    return answer.choices[0].message.content


def test_the_text_is_that_of_a_chat(client: openai.OpenAI) -> None:
    response = respond(client, instructions="Be brief.", metadata={"a": "b"})
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is gravity?"},
    ]
    assert response.output_text == chat_text(client, messages)
    assert response.object == "response" and response.metadata == {"a": "b"}
    assert response.status == "incomplete" and response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.usage is not None and response.usage.output_tokens == 12
    assert response.completed_at is None


def test_what_the_request_leaves_open_is_reported(client: openai.OpenAI) -> None:
    tool = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    options = {"top_p": 0.5, "tools": [tool], "tool_choice": "none", "max_output_tokens": 400}
    response = respond(client, input="Say hi.", prompt_cache_key="k", **options)
    assert (response.temperature, response.top_p) == (0, 0.5)
    body = response.model_dump()
    assert body["frequency_penalty"] == 0 and body["prompt_cache_key"] == "k"
    assert body["tools"][0]["strict"] is None and body["tools"][0]["description"] is None
    assert response.status == "completed"
    assert response.completed_at is not None and response.completed_at >= response.created_at


def test_a_conversation_as_items(client: openai.OpenAI) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi, I am Ann."}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello Ann!"}],
        },
        {"role": "user", "content": "What is my name?"},
    ]
    messages = [
        {"role": "user", "content": "Hi, I am Ann."},
        {"role": "assistant", "content": "Hello Ann!"},
        {"role": "user", "content": "What is my name?"},
    ]
    chat_text(client, messages)  # so that both answers begin with the same stored prefix
    assert respond(client, input=items).output_text == chat_text(client, messages)


def test_a_stream_tells_the_same_in_order(client: openai.OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input="What is gravity?", max_output_tokens=12, temperature=0
    ) as stream:
        events = list(stream)
    last = events[-1]
    assert last.type == "response.incomplete"
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == last.response.output_text == respond(client).output_text


def test_structured_output(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    response = respond(
        client,
        input="The capital of France, as JSON.",
        max_output_tokens=40,
        text={"format": {"type": "json_schema", "name": "c", "schema": schema, "strict": True}},
    )
    assert json.loads(response.output_text)["city"] in ("Paris", "Rome")
    assert response.status == "completed"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"previous_response_id": "resp_1"}, "whole conversation"),
        ({"background": True}, "background"),
        ({"input": []}, "empty"),
        ({"temperature": -1}, "temperature"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"text": {"format": {"type": "json_schema", "name": "c"}}}, "schema"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        respond(client, **options)
