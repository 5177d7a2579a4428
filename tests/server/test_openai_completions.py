"""/v1/completions as OpenAI's own client uses it, on the real model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openai
import pytest

from powerserve import LLM
from powerserve.core.dtypes import F16
from powerserve.engine.loader import LoadOptions
from powerserve.evaluate.scoring import batch_logits, token_nll
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


END_OF_TURN = 2  # SmolLM2's <|im_end|>
TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module")
def text_logprobs(smollm2: Path) -> list[float]:
    """What perplexity's own scoring makes of TEXT's tokens but the first."""
    with LLM(smollm2, LoadOptions(context_size=256, kernels="ggml")) as llm:
        loaded = llm.loaded
        token_ids = np.array(loaded.tokenizer.encode(TEXT), np.int32)
        (logits,) = batch_logits(loaded.model, token_ids, batch_size=256, kv_dtype=F16)
        return [float(-nll) for nll in token_nll(logits[:-1], token_ids[1:])]


def check_prompt(choice: openai.types.CompletionChoice, logprobs: list[float]) -> None:
    found = choice.logprobs
    assert found is not None and found.tokens and found.token_logprobs
    assert found.top_logprobs and found.text_offset
    count = len(logprobs) + 1
    assert "".join(found.tokens[:count]) == TEXT
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    assert found.token_logprobs[1:count] == pytest.approx(logprobs, abs=0.05)
    for offset, token in zip(found.text_offset[:count], found.tokens, strict=False):
        assert choice.text[offset : offset + len(token)] == token


@pytest.mark.parametrize("as_ids", [False, True])
def test_echo_with_logprobs_scores_the_prompt(
    client: openai.OpenAI, server: ServerProcess, text_logprobs: list[float], as_ids: bool
) -> None:
    prompt: object = TEXT
    if as_ids:
        with server.client() as http:
            prompt = http.post("/tokenize", json={"content": TEXT}).json()["tokens"]
    answer = complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer.choices
    assert choice.text == TEXT and choice.finish_reason == "length"
    check_prompt(choice, text_logprobs)
    assert choice.logprobs and len(choice.logprobs.tokens or ()) == len(text_logprobs) + 1
    assert answer.usage is not None and answer.usage.completion_tokens == 0


def test_an_answer_after_the_scored_prompt(
    client: openai.OpenAI, text_logprobs: list[float]
) -> None:
    plain = complete(client, prompt=TEXT, logprobs=1).choices[0]
    first, second = complete(client, prompt=[TEXT, TEXT], echo=True, logprobs=1).choices
    for choice in (first, second):
        assert choice.text == TEXT + plain.text
        check_prompt(choice, text_logprobs)
        assert choice.logprobs and plain.logprobs
        assert (choice.logprobs.tokens or [])[-6:] == plain.logprobs.tokens


def test_an_end_token_after_the_scored_prompt_counts(
    client: openai.OpenAI, text_logprobs: list[float]
) -> None:
    """Harnesses ask for one token, and leave out the last entry whatever that token is."""
    ends_at_once = {str(END_OF_TURN): 100}
    (choice,) = complete(
        client, prompt=TEXT, echo=True, logprobs=1, max_tokens=1, logit_bias=ends_at_once
    ).choices
    assert choice.text == TEXT and choice.finish_reason == "stop"
    check_prompt(choice, text_logprobs)
    assert choice.logprobs and len(choice.logprobs.tokens or ()) == len(text_logprobs) + 2


def test_a_stream_begins_with_the_scored_prompt(
    client: openai.OpenAI, text_logprobs: list[float]
) -> None:
    chunks = client.completions.create(
        model=MODEL,
        prompt=TEXT,
        max_tokens=3,
        temperature=0,
        echo=True,
        logprobs=0,
        stream=True,
    )
    first, *rest = [chunk.choices[0] for chunk in chunks]
    assert first.text == TEXT
    check_prompt(first, text_logprobs)
    assert rest[0].logprobs and rest[0].logprobs.text_offset == [len(TEXT)]


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
        ({"echo": True, "logprobs": 21}, "logprobs"),
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
