"""Calls of tools over HTTP, with the real model and OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

MODEL = "smollm2-135m"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def ask(client: openai.OpenAI, **options: Any) -> Any:
    """A greedy answer to a question that a tool could help with."""
    defaults = {
        "model": MODEL,
        "messages": QUESTION,
        "tools": [WEATHER, CLOCK],
        "temperature": 0,
        "max_tokens": 60,
    }
    return client.chat.completions.create(**defaults | options)


def test_a_named_tool_is_called(client: openai.OpenAI) -> None:
    choice = ask(client, tool_choice=NAMED).choices[0]
    assert choice.finish_reason == "tool_calls" and not choice.message.content
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and call.id and call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_some_tool_is_called_if_one_is_required(client: openai.OpenAI) -> None:
    (call,) = ask(client, tool_choice="required").choices[0].message.tool_calls
    assert call.function.name in ("get_weather", "get_time")


def test_no_tool_is_called_if_none_may_be(client: openai.OpenAI) -> None:
    without = ask(client, tool_choice="none")
    assert not without.choices[0].message.tool_calls
    plain = ask(client, tools=openai.omit)
    assert without.usage.prompt_tokens == plain.usage.prompt_tokens  # it is not told of any


def test_a_stream_brings_the_call_in_parts(client: openai.OpenAI) -> None:
    (whole,) = ask(client, tool_choice=NAMED).choices[0].message.tool_calls
    names, arguments, reason = [], "", None
    for chunk in ask(client, tool_choice=NAMED, stream=True):
        reason = chunk.choices[0].finish_reason or reason
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
    assert names == ["get_weather"] and arguments == whole.function.arguments
    assert reason == "tool_calls"


def test_results_go_back_to_the_model(client: openai.OpenAI) -> None:
    message = ask(client, tool_choice=NAMED).choices[0].message
    call_id = message.tool_calls[0].id
    result = {"role": "tool", "tool_call_id": call_id, "content": "21 degrees"}
    before, after = (
        ask(client, messages=[*QUESTION, message.model_dump(exclude_none=True), *more])
        for more in ([], [result])
    )
    assert after.usage.prompt_tokens > before.usage.prompt_tokens


def test_responses_call_tools_as_well(client: openai.OpenAI) -> None:
    tool = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    response = client.responses.create(
        model=MODEL,
        input="What is the weather in Paris?",
        tools=[tool],  # type: ignore[list-item]
        tool_choice={"type": "function", "name": "get_weather"},
        temperature=0,
    )
    (item,) = response.output
    assert item.type == "function_call" and item.name == "get_weather" and item.call_id
    assert json.loads(item.arguments) == {"city": "Paris"}
    again = client.responses.create(
        model=MODEL,
        input=[  # type: ignore[arg-type]
            {"role": "user", "content": "What is the weather in Paris?"},
            item.model_dump(exclude_none=True),
            {"type": "function_call_output", "call_id": item.call_id, "output": "21 degrees"},
        ],
        max_output_tokens=5,
    )
    assert again.output_text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "second time"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "other"),
        ({"tool_choice": "perhaps"}, "perhaps"),
        ({"tools": [], "tool_choice": "required"}, "no tools"),
        ({"response_format": {"type": "json_object"}}, "exclude each other"),
        ({"tools": [{"type": "web_search"}]}, "function"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, **options)
