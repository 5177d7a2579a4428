"""What operators and tools ask: health, metrics, running requests, tokens."""

from __future__ import annotations

from functools import partial
from time import monotonic
from typing import Any

import msgspec

from powerserve.server.bounds import check_length
from powerserve.server.metrics import CONTENT_TYPE
from powerserve.server.model_runner import OpenGeneration
from powerserve.server.openai.errors import error_body, error_frame
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Operation, Reply, Surface


def operations_surface(serving: Serving) -> Surface:
    """The routes; llama.cpp's server has the same."""
    return Surface(
        "operations",
        (
            Operation("GET", "/health", partial(_health, serving), is_public=True),
            Operation("GET", "/v1/health", partial(_health, serving), is_public=True),
            Operation("GET", "/metrics", partial(_metrics, serving)),
            Operation("GET", "/slots", partial(_slots, serving)),
            Operation("POST", "/tokenize", partial(_tokenize, serving)),
            Operation("POST", "/detokenize", partial(_detokenize, serving)),
        ),
        error_body,
        error_frame,
    )


class TokenizeRequest(msgspec.Struct):
    """The body of /tokenize."""

    content: str
    model: str = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(msgspec.Struct):
    """The body of /detokenize."""

    tokens: list[int]
    model: str = ""


async def _health(serving: Serving, call: Call) -> Reply:
    """Whether requests can be answered: 503 while stopping or after an engine has failed."""
    if serving.is_stopping:
        return Reply({"status": "stopping"}, 503)
    failures = [runner.failure for runner in serving.pool.runners if runner.failure]
    if failures:
        return Reply({"status": "error", "error": str(failures[0])}, 503)
    return Reply({"status": "ok"})


async def _metrics(serving: Serving, call: Call) -> Reply:
    return Reply(serving.metrics.text(), content_type=CONTENT_TYPE)


async def _slots(serving: Serving, call: Call) -> Reply:
    """How far each running request is; never what it is about."""
    runners = serving.pool.runners
    return Reply([_slot(each) for runner in runners for each in runner.generations])


def _slot(generation: OpenGeneration) -> dict[str, Any]:
    return {
        "id": generation.key,
        "model": generation.model,
        "state": _state(generation),
        "is_processing": bool(generation.num_prefilled),
        "prompt_tokens": generation.num_prompt_tokens,
        "prefilled_tokens": generation.num_prefilled,
        "generated_tokens": generation.num_generated,
        "age_s": round(monotonic() - generation.opened, 3),
    }


def _state(generation: OpenGeneration) -> str:
    if generation.num_generated:
        return "generating"
    return "prefilling" if generation.num_prefilled else "waiting"


async def _tokenize(serving: Serving, call: Call) -> Reply:
    body = call.decode(TokenizeRequest)
    check_length(len(body.content), "content")
    async with serving.pool.lease(body.model) as runner:
        tokenizer = runner.loaded.tokenizer
        ids = await serving.in_worker(
            tokenizer.encode,
            body.content,
            add_special=body.add_special,
            parse_special=body.parse_special,
        )
        if not body.with_pieces:
            return Reply({"tokens": ids})
        pieces = [
            {"id": each, "piece": _piece(tokenizer.token_bytes(each, special=True))} for each in ids
        ]
        return Reply({"tokens": pieces})


async def _detokenize(serving: Serving, call: Call) -> Reply:
    body = call.decode(DetokenizeRequest)
    check_length(len(body.tokens), "tokens")
    async with serving.pool.lease(body.model) as runner:
        decode = runner.loaded.tokenizer.decode
        return Reply({"content": await serving.in_worker(decode, body.tokens, special=True)})


def _piece(token: bytes) -> str | list[int]:
    """A token's text, or its bytes if they are no whole characters, as llama.cpp's server does."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
