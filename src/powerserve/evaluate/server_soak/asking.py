"""Clients that ask, and check what they get: it must be the answer to their own request."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

from powerserve.evaluate.server_soak.families import Answer, Family, Wish, WrongAnswer
from powerserve.evaluate.server_soak.http_client import Connection, Reply, Request
from powerserve.evaluate.server_soak.questions import Form, find_marks, new_mark
from powerserve.evaluate.server_soak.setting import Setting, is_refused

ANSWERED, REFUSED = "answered", "refused for now"
_SAME = 0.999  # cosine of embeddings of the same text
_STOP = "a"
_PAGES = ("/", "/health", "/metrics", "/slots", "/v1/models", "/api/tags", "/api/ps", "/web/app.js")


async def ask(setting: Setting, connection: Connection, chance: random.Random) -> str:
    """A text, in any API and form, with any of the usual extras."""
    family, wish = setting.wish(chance)
    wish = _with_extras(family, wish, chance)
    reply = await connection.ask(Request.post(family.path, family.body(wish)))
    return judge(setting, family, wish, reply)


def judge(setting: Setting, family: Family, wish: Wish, reply: Reply) -> str:
    """What became of a wish. Raises WrongAnswer."""
    if is_refused(reply):
        return REFUSED
    _expect_success(reply)
    _check(setting, family, wish, family.read(reply, wish))
    return ANSWERED


async def embed(setting: Setting, connection: Connection, chance: random.Random) -> str:
    """Vectors of several texts, which are theirs and in their order."""
    model = setting.model(chance)
    chosen = chance.sample(setting.questions, chance.randint(1, 3))
    body = {"model": model, "input": [question.text for question in chosen]}
    is_ollama = chance.random() < 0.5
    path = "/api/embed" if is_ollama else "/v1/embeddings"
    reply = await connection.ask(Request.post(path, body))
    if is_refused(reply):
        return REFUSED
    _expect_success(reply)
    value = reply.json()
    vectors = value["embeddings"] if is_ollama else [each["embedding"] for each in value["data"]]
    for question, vector in zip(chosen, vectors, strict=True):
        if _cosine(vector, setting.truths[model].vectors[question]) < _SAME:
            raise WrongAnswer(f"the vector of another text than {question.text!r}")
    return ANSWERED


async def count(setting: Setting, connection: Connection, chance: random.Random) -> str:
    """How many tokens a prompt has."""
    question, model = chance.choice(setting.questions), setting.model(chance)
    body = {"model": model, "messages": question.messages}
    reply = await connection.ask(Request.post("/v1/messages/count_tokens", body))
    if is_refused(reply):
        return REFUSED
    _expect_success(reply)
    known = setting.truths[model].chats[question].num_prompt_tokens
    _expect("tokens of the prompt", reply.json()["input_tokens"], known)
    return ANSWERED


async def tokenize(setting: Setting, connection: Connection, chance: random.Random) -> str:
    """A text to tokens and back."""
    model = setting.model(chance)
    text = f"{chance.choice(setting.questions).text} {new_mark(chance)}"
    value: dict[str, Any] = {"content": text}
    for path in ("/tokenize", "/detokenize"):
        reply = await connection.ask(Request.post(path, value | {"model": model}))
        if is_refused(reply):
            return REFUSED
        _expect_success(reply)
        value = reply.json()
    _expect("text", value, {"content": text})
    return ANSWERED


async def look(setting: Setting, connection: Connection, chance: random.Random) -> str:
    """A page, or what operators look at."""
    path = chance.choice(_PAGES)
    reply = await connection.ask(Request("GET", path, headers=()))
    _expect(f"status of {path}", reply.status, 200)
    return ANSWERED


def _with_extras(family: Family, wish: Wish, chance: random.Random) -> Wish:
    """Now and then more choices, log-probabilities, a stop string, a seed."""
    is_openai = family.name in ("chat", "completions")
    if wish.form is not Form.PLAIN or not is_openai:
        return wish
    match chance.choice(("none", "none", "choices", "logprobs", "stop", "seed")):
        case "choices":
            return replace(wish, extra={"n": 3}, temperature=1.0)
        case "logprobs":
            value: Any = True if family.name == "chat" else 1
            return replace(wish, extra={"logprobs": value})
        case "stop":
            return replace(wish, extra={"stop": [_STOP]}, temperature=1.0)
        case "seed":
            return replace(wish, extra={"seed": chance.getrandbits(60)}, temperature=1.0)
    return wish


def _check(setting: Setting, family: Family, wish: Wish, answer: Answer) -> None:
    num_choices = wish.extra.get("n", 1)
    _expect("choices", sorted(answer.texts) or [0], list(range(num_choices)))
    text = answer.texts.get(0, "")
    if answer.num_generated is None or answer.num_generated > num_choices * wish.max_tokens:
        raise WrongAnswer(f"{answer.num_generated} tokens instead of {wish.max_tokens}")
    if wish.form is Form.PLAIN:
        _check_plain(wish, answer, text)
    else:
        is_cut = answer.num_generated == wish.max_tokens
        _check_mark(text, wish.mark, is_cut)
    known = setting.truths[wish.model]
    truth = (known.chats if family.is_chat else known.completions)[wish.question]
    if wish.form is not Form.TOOL:  # tools are a part of the prompt
        _expect("tokens of the prompt", answer.num_prompt_tokens, truth.num_prompt_tokens)
    is_greedy = wish.temperature == 0 and wish.form is Form.PLAIN
    if is_greedy and not truth.agrees(text):
        raise WrongAnswer(f"{text!r} to {wish.question}, not {truth.beginning!r}")


def _check_plain(wish: Wish, answer: Answer, text: str) -> None:
    if "stop" in wish.extra and _STOP in text:
        raise WrongAnswer(f"a stop string in {text!r}")
    if "logprobs" in wish.extra and "\ufffd" not in text:
        joined = "".join(answer.logprob_tokens)
        if "\ufffd" not in joined:  # else tokens that are parts of characters
            _expect("text of the log-probabilities", joined, text)


def _check_mark(text: str, mark: str, is_cut: bool) -> None:
    """The answer is the mark, or an object with it; a cut one at least has no other."""
    if is_cut:  # schemas allow white space of any length
        _expect("marks", set(find_marks(text)) - {mark}, set())
    elif text != mark:
        _expect("mark", _mark_in(text), mark)


def _mark_in(text: str) -> Any:
    """The mark in an object."""
    try:
        return json.loads(text)["mark"]
    except (ValueError, KeyError, TypeError):
        return text


def _expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise WrongAnswer(f"{what}: {found!r} instead of {expected!r}")


def _expect_success(reply: Reply) -> None:
    if reply.status != 200:
        raise WrongAnswer(f"status {reply.status}: {reply.body[:300]!r}")


def _cosine(first: list[float], second: list[float]) -> float:
    product = sum(a * b for a, b in zip(first, second, strict=True))
    return product / (math.hypot(*first) * math.hypot(*second))
