"""Anthropic's messages."""

from __future__ import annotations

import json

from powerserve.evaluate.server_soak.families.base import Answer, Body, Chunk, Family, Wish
from powerserve.evaluate.server_soak.questions import Form, schema_of


def _message_body(wish: Wish) -> Body:
    body: Body = {
        "model": wish.model,
        "messages": wish.question.messages,
        "max_tokens": wish.max_tokens,
        "temperature": wish.temperature,
        "stream": wish.is_stream,
    }
    if wish.form is Form.SCHEMA:
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema_of(wish.mark)}}
    if wish.form is Form.TOOL:
        body["tools"] = [{"name": "set_mark", "input_schema": schema_of(wish.mark)}]
        body["tool_choice"] = {"type": "any"}
    return body | wish.extra


def _message_whole(body: Body, answer: Answer) -> None:
    for block in body["content"]:
        answer.add(json.dumps(block["input"]) if block["type"] == "tool_use" else block["text"])
    _message_usage(body["usage"], answer)


def _message_chunk(chunk: Chunk, answer: Answer) -> None:
    match chunk["type"]:
        case "content_block_delta":
            delta = chunk["delta"]
            answer.add(delta.get("text") or delta.get("partial_json"))
        case "message_delta":
            _message_usage(chunk["usage"], answer)
        case "message_stop":
            answer.is_complete = True


def _message_usage(usage: Body, answer: Answer) -> None:
    answer.num_prompt_tokens = usage["input_tokens"] + (usage.get("cache_read_input_tokens") or 0)
    answer.num_generated = usage["output_tokens"]


MESSAGES = Family(
    "messages",
    "/v1/messages",
    _message_body,
    _message_whole,
    _message_chunk,
    forms=(Form.PLAIN, Form.SCHEMA, Form.TOOL),
)
