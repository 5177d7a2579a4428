"""/v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

from powerserve.server.answer import Answer, Choice
from powerserve.server.anthropic.endings import ending, usage_body
from powerserve.server.anthropic.fields import MessagesRequest, PromptFields
from powerserve.server.anthropic.stream import MessageStream, tool_use_block
from powerserve.server.content import ToolCallDelta
from powerserve.server.preparation import encode_chat
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply


async def messages(serving: Serving, call: Call) -> Reply | Events:
    """Answer a conversation."""
    body = call.decode(MessagesRequest)
    answer = serving.answer(body.neutral())
    base = {
        "id": f"msg_{secrets.token_hex(12)}",
        "type": "message",
        "role": "assistant",
        "model": body.model,
    }
    if body.stream:
        stream = MessageStream(base, shows_thinking=body.shows_thinking)
        return Events(stream.frames(answer))
    async with answer as opened:
        (choice,) = await opened.choices()
        return Reply(_message(base, opened, choice, body.shows_thinking))


async def count_tokens(serving: Serving, call: Call) -> Reply:
    """Say how long a prompt is, without an answer."""
    body = call.decode(PromptFields)
    prompt = body.prompt()
    async with serving.pool.lease(body.model) as runner:
        ids = await serving.in_worker(encode_chat, runner.loaded, prompt)
    return Reply({"input_tokens": len(ids)})


def _message(
    base: dict[str, Any], answer: Answer, choice: Choice, shows_thinking: bool
) -> dict[str, Any]:
    return (
        base
        | {
            "model": base["model"] or answer.runner.name,
            "content": list(_blocks(choice, shows_thinking)),
            "usage": usage_body(choice.ended.usage),
        }
        | ending(choice.ended, called_tools=bool(choice.tool_calls))
    )


def _blocks(choice: Choice, shows_thinking: bool) -> Iterator[dict[str, Any]]:
    if choice.reasoning and shows_thinking:
        yield {"type": "thinking", "thinking": choice.reasoning, "signature": ""}
    if choice.text:
        yield {"type": "text", "text": choice.text, "citations": None}
    for call in choice.tool_calls:
        yield tool_use_block(call) | {"input": _arguments(call)}


def _arguments(call: ToolCallDelta) -> dict[str, Any]:
    """The arguments as an object; an empty one if the answer was cut off within them."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return {}
    return arguments if isinstance(arguments, dict) else {}
