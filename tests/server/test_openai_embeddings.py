"""/v1/embeddings as OpenAI's own client uses it, on the real model."""

from __future__ import annotations

import base64
import math
from array import array

import httpx
import openai
import pytest

MODEL = "smollm2-135m"
TEXTS = ["A cat sat on the mat.", "A kitten lay on the rug.", "Interest rates rose in May."]


def test_similar_texts_have_similar_vectors(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=MODEL, input=TEXTS)  # as base64
    cat, kitten, rates = (each.embedding for each in answer.data)
    assert len(cat) == 576 and math.isclose(math.dist(cat, [0] * 576), 1, abs_tol=1e-5)
    assert math.dist(cat, kitten) < math.dist(cat, rates)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens >= 18


def test_the_forms_of_input_and_output(client: openai.OpenAI, http: httpx.Client) -> None:
    def first(**options: object) -> list[float]:
        defaults = {"model": MODEL, "encoding_format": "float"}
        vector: list[float] = client.embeddings.create(**defaults | options).data[0].embedding  # type: ignore[call-overload]
        return vector

    ids = http.post("/tokenize", json={"content": TEXTS[0]}).json()["tokens"]
    plain = first(input=TEXTS[0])
    assert first(input=ids) == first(input=[ids]) == first(input=TEXTS[:1]) == plain
    body = {"input": TEXTS[0], "encoding_format": "base64"}
    encoded = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    values = array("f", base64.b64decode(encoded))
    assert values.tolist() == pytest.approx(plain, abs=1e-7)
    assert first(input=TEXTS[0], dimensions=576) == plain


def test_generations_go_on_meanwhile(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0}
    alone = client.completions.create(**options, max_tokens=16)  # type: ignore[call-overload]
    stream = client.completions.create(**options, max_tokens=16, stream=True)  # type: ignore[call-overload]
    text = next(stream).choices[0].text
    client.embeddings.create(model=MODEL, input=" ".join(TEXTS * 20))
    text += "".join(chunk.choices[0].text for chunk in stream)
    assert text == alone.choices[0].text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": []}, "empty list"),
        ({"input": ""}, "empty"),
        ({"input": [-1]}, "token id"),
        ({"input": "long " * 3000}, "context"),
        ({"input": "x", "dimensions": 5}, "576 dimensions"),
        ({"input": ["x"] * 2049}, "2,048"),
    ],
)
def test_what_cannot_be_done_is_refused(
    client: openai.OpenAI, options: dict[str, object], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(model=MODEL, **options)  # type: ignore[arg-type]
