"""/v1/chat/completions as OpenAI's own client uses it, on the real model."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from powerserve import LLM, LoadOptions, SamplingParams
from server_process import ServerProcess

GRAVITY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is gravity?"}]
MODEL = "smollm2-135m"


def ask(client: openai.OpenAI, **options: object) -> openai.types.chat.ChatCompletion:
    """A short greedy answer, unless the options say otherwise."""
    defaults = {"model": MODEL, "messages": GRAVITY, "max_tokens": 12, "temperature": 0}
    return client.chat.completions.create(**defaults | options)  # type: ignore[call-overload,no-any-return]


def test_the_answer_is_the_one_of_the_python_api(client: openai.OpenAI, smollm2: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    with LLM(smollm2, LoadOptions(context_size=512)) as llm:
        expected = llm.chat([{"role": "user", "content": "What is gravity?"}], params)
    answer = ask(client)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "chat.completion" and answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.num_prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_a_stream_carries_the_same_text(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=GRAVITY,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    assert len({chunk.id for chunk in chunks}) == 1
    usage = chunks[-1].usage
    assert usage is not None and usage.completion_tokens == 12 and not chunks[-1].choices
    assert len(chunks) > 10  # piece by piece, not all at once


def test_the_asynchronous_client(server: ServerProcess) -> None:
    async def talk() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            options = {"model": MODEL, "messages": GRAVITY, "max_tokens": 8, "temperature": 0}
            whole = await client.chat.completions.create(**options)  # type: ignore[call-overload]
            stream = await client.chat.completions.create(**options, stream=True)  # type: ignore[call-overload]
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    whole, streamed = asyncio.run(talk())
    assert whole and whole == streamed


def test_a_second_answer_takes_its_prompt_from_the_cache(client: openai.OpenAI) -> None:
    ask(client)
    usage = ask(client).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1


def test_stop_strings(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    assert whole is not None
    word = whole.split()[3]
    choice = ask(client, stop=["never said", word]).choices[0]
    assert choice.message.content == whole[: whole.index(word)]
    assert choice.finish_reason == "stop"


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def text(seed: int) -> str | None:
        return ask(client, temperature=1.5, seed=seed, max_tokens=16).choices[0].message.content

    assert text(1) == text(1)
    assert text(1) != text(2)
    assert text(-5) == text(-5)  # OpenAI's seeds are signed


def test_several_choices(client: openai.OpenAI) -> None:
    answer = ask(client, n=3, temperature=1.5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage is not None and answer.usage.completion_tokens == 36
    alone = ask(client, temperature=1.5, seed=1)
    assert answer.choices[0].message.content == alone.choices[0].message.content
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens  # type: ignore[union-attr]


def test_several_choices_in_a_stream(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "messages": GRAVITY, "max_tokens": 6, "temperature": 1.5, "seed": 1}
    whole = client.chat.completions.create(n=2, **options)  # type: ignore[call-overload]
    texts = ["", ""]
    for chunk in client.chat.completions.create(n=2, stream=True, **options):  # type: ignore[call-overload]
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy takes the likeliest
        assert sum(math.exp(other.logprob) for other in token.top_logprobs) <= 1.0001
        assert bytes(token.bytes or []).decode() == token.token


def test_log_probabilities_of_a_stop_string_stay_away(client: openai.OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    assert whole is not None
    choice = ask(client, logprobs=True, stop=f" {whole.split()[3]}").choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content


def test_a_bias_forbids_a_token(client: openai.OpenAI, server: ServerProcess) -> None:
    first = ask(client, max_tokens=1).choices[0].message.content
    with server.client() as http:
        token = http.post("/tokenize", json={"content": first}).json()["tokens"][0]
    other = ask(client, max_tokens=1, logit_bias={str(token): -100}).choices[0].message.content
    assert other != first


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = ask(
        client,
        messages=[{"role": "user", "content": "Describe Ann, aged 31, as JSON."}],
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "p", "schema": schema}},
    )
    value = json.loads(answer.choices[0].message.content or "")
    assert set(value) == {"name", "age"} and isinstance(value["age"], int)


def test_a_regular_expression(client: openai.OpenAI) -> None:
    answer = ask(client, extra_body={"regex": "(yes|no)!"})
    assert answer.choices[0].message.content in ("yes!", "no!")
    assert answer.choices[0].finish_reason == "stop"


def test_content_parts_and_other_roles(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "gravity?"}]
    in_parts = ask(client, messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == ask(client).choices[0].message.content
    texts = {
        ask(
            client,
            messages=[{"role": role, "content": "Answer in French."}, *GRAVITY],
        )
        .choices[0]
        .message.content
        for role in ("system", "developer")
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n must be"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 1001}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(5000)}}, "entries"),
        ({"messages": []}, "message"),
        ({"logit_bias": {"hello": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1e30}}, "logit_bias"),
        ({"presence_penalty": -1e300}, "presence_penalty"),
        ({"extra_body": {"repetition_penalty": 1e300}}, "repeat_penalty"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"max_tokens": -7}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "text only",
        ),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, "context"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        ask(client, **options)


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=MODEL) as caught:
        ask(client, model="gpt-5")
    assert caught.value.code == "model_not_found"


def test_errors_before_a_stream_begins_have_a_status(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context"):
        ask(client, stream=True, messages=[{"role": "user", "content": "long " * 3000}])


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "PowerServe"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
