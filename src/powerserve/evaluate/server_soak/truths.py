"""The answers of a server at rest, as far as nothing but a mistake could change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from powerserve.evaluate.server_soak.http_client import Connection, Request
from powerserve.evaluate.server_soak.questions import Question

# Between the likeliest token and the next, in natural log-probability. How requests are batched
# changes logits by less than a tenth of it.
_SURE_MARGIN = 1.0
_NUM_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Truth:
    """How an answer at temperature 0 begins, and how long its prompt is."""

    num_prompt_tokens: int
    beginning: str  # up to the first token that another one comes near; may be empty

    def agrees(self, text: str) -> bool:
        """Whether `text`, which may have been cut, begins like that."""
        return text.startswith(self.beginning) or self.beginning.startswith(text)


@dataclass(frozen=True, slots=True)
class ModelTruths:
    """What one model answers to each question, and how it places them."""

    chats: dict[Question, Truth]
    completions: dict[Question, Truth]
    vectors: dict[Question, list[float]]

    def agree(self, others: ModelTruths) -> bool:
        """Whether those of the same model at another time say the same."""
        pairs = [(known, others.chats[question]) for question, known in self.chats.items()]
        pairs += [(self.completions[each], others.completions[each]) for each in self.completions]
        return all(
            known.num_prompt_tokens == other.num_prompt_tokens and known.agrees(other.beginning)
            for known, other in pairs
        )


async def find_truths(
    connection: Connection, model: str, questions: Sequence[Question]
) -> ModelTruths:
    """Ask everything once, one thing at a time. Raises ConnectionLost or KeyError."""
    truths = ModelTruths({}, {}, {})
    common = {"model": model, "max_tokens": _NUM_TOKENS, "temperature": 0}
    for question in questions:
        body = common | {"messages": question.messages, "logprobs": True, "top_logprobs": 2}
        reply = await connection.ask(Request.post("/v1/chat/completions", body))
        truths.chats[question] = _truth(reply.json(), _chat_tokens(reply.json()))
        body = common | {"prompt": question.beginning, "logprobs": 2}
        reply = await connection.ask(Request.post("/v1/completions", body))
        truths.completions[question] = _truth(reply.json(), _text_tokens(reply.json()))
    texts = [question.text for question in questions]
    body = {"model": model, "input": texts}
    vectors = (await connection.ask(Request.post("/v1/embeddings", body))).json()["data"]
    truths.vectors.update(zip(questions, (each["embedding"] for each in vectors), strict=True))
    return truths


def _truth(reply: dict[str, Any], tokens: list[tuple[str, float]]) -> Truth:
    """From the tokens of an answer, each with its margin."""
    sure = takewhile(lambda token: token[1] >= _SURE_MARGIN, tokens)
    return Truth(reply["usage"]["prompt_tokens"], "".join(text for text, _ in sure))


def _chat_tokens(reply: dict[str, Any]) -> list[tuple[str, float]]:
    logprobs = reply["choices"][0]["logprobs"] or {"content": []}
    return [
        (each["token"], _margin([other["logprob"] for other in each["top_logprobs"]]))
        for each in logprobs["content"]
    ]


def _text_tokens(reply: dict[str, Any]) -> list[tuple[str, float]]:
    logprobs = reply["choices"][0]["logprobs"] or {"tokens": [], "top_logprobs": []}
    pairs = zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    return [(text, _margin(list(top.values()))) for text, top in pairs]


def _margin(logprobs: list[float]) -> float:
    first, second = sorted(logprobs, reverse=True)[:2]
    return first - second
