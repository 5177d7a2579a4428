"""/v1/completions as OpenAI's own client uses it, on the real model."""

from __future__ import annotations

import openai
import pytest

from server_process import ServerProcess

MODEL = "smollm2-135m"
CAPITAL = "The capital of France is"


def complete(client: openai.OpenAI, **options: object) -> openai.types.Completion:
    """A short greedy answer, unless the options say otherwise."""
    defaults = {"model": MODEL, "prompt": CAPITAL, "max_tokens": 6, "temperature": 0}
    return client.completions.create(**defaults | options)  # type: ignore[call-overload,no-any-return]


def test_text_is_continued(client: openai.OpenAI) -> None:
    answer = complete(client)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.object == "text_completion"
    assert answer.usage is not None and answer.usage.prompt_tokens == 5


def test_sixteen_tokens_are_the_default(client: openai.OpenAI) -> None:
    usage = complete(client, max_tokens=None, extra_body={"ignore_eos": True}).usage
    assert usage is not None and usage.completion_tokens == 16


def test_a_stream_carries_the_same_text(client: openai.OpenAI) -> None:
    chunks = client.completions.create(
        model=MODEL, prompt=CAPITAL, max_tokens=6, temperature=0, stream=True
    )
    collected = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.text for choice in collected) == complete(client).choices[0].text
    assert collected[-1].finish_reason == "length"


def test_token_ids_and_several_prompts(client: openai.OpenAI, server: ServerProcess) -> None:
    with server.client() as http:
        ids = http.post("/tokenize", json={"content": CAPITAL}).json()["tokens"]
    expected = [
        complete(client).choices[0].text,
        complete(client, prompt="Two plus").choices[0].text,
    ]
    assert complete(client, prompt=ids).choices[0].text == expected[0]
    answer = complete(client, prompt=[CAPITAL, "Two plus"])
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.text for choice in complete(client, prompt=[ids, ids]).choices] == expected[
        :1
    ] * 2
    assert answer.usage is not None and answer.usage.completion_tokens == 12


def test_echo_puts_the_prompt_first(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == CAPITAL + plain
    chunks = client.completions.create(
        model=MODEL, prompt=CAPITAL, max_tokens=6, temperature=0, echo=True, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == CAPITAL + plain


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = complete(client, logprobs=2).choices[0]
    found = choice.logprobs
    assert found is not None and found.tokens and found.top_logprobs and found.text_offset
    assert "".join(found.tokens) == choice.text
    assert found.text_offset[1] == len(found.tokens[0])
    for token, logprob, top in zip(
        found.tokens, found.token_logprobs or [], found.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values())


def test_extra_fields_of_other_servers(client: openai.OpenAI) -> None:
    greedy = complete(client).choices[0].text
    assert complete(client, temperature=1.5, extra_body={"top_k": 1}).choices[0].text == greedy
    forced = complete(client, extra_body={"grammar": 'start: " Rome"'})
    assert forced.choices[0].text == " Rome"
    gbnf = complete(client, extra_body={"grammar": 'root ::= " Oslo"'})
    assert gbnf.choices[0].text == " Oslo"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suffix": "the end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "empty list"),
        ({"prompt": [1, "x"]}, "mix"),
        ({"prompt": [10**9]}, "token id"),
        ({"extra_body": {"grammar": "start: nowhere"}}, "grammar"),
        ({"extra_body": {"grammar": 'start: "x"', "regex": "x"}}, "not several"),
        ({"extra_body": {"regex": "(unclosed"}}, "regular expression"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        complete(client, **options)
