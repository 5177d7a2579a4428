"""OpenAI's responses."""

from __future__ import annotations

from powerserve.evaluate.server_soak.families.base import Answer, Body, Chunk, Family, Wish
from powerserve.evaluate.server_soak.questions import Form, schema_of


def _response_body(wish: Wish) -> Body:
    body: Body = {
        "model": wish.model,
        "input": wish.question.text,
        "max_output_tokens": wish.max_tokens,
        "temperature": wish.temperature,
        "stream": wish.is_stream,
    }
    if wish.form is Form.SCHEMA:
        schema = {"type": "json_schema", "name": "mark", "schema": schema_of(wish.mark)}
        body["text"] = {"format": schema}
    if wish.form is Form.TOOL:
        tool = {"type": "function", "name": "set_mark", "parameters": schema_of(wish.mark)}
        body |= {"tools": [tool], "tool_choice": "required"}
    return body | wish.extra


def _response_whole(body: Body, answer: Answer) -> None:
    for item in body["output"]:
        if item["type"] == "function_call":
            answer.add(item["arguments"])
        for part in item.get("content") or ():
            answer.add(part["text"])
    _response_usage(body, answer)


def _response_chunk(chunk: Chunk, answer: Answer) -> None:
    kind = chunk["type"]
    if kind in ("response.output_text.delta", "response.function_call_arguments.delta"):
        answer.add(chunk["delta"])
    if kind in ("response.completed", "response.incomplete"):
        _response_usage(chunk["response"], answer)
        answer.is_complete = True


def _response_usage(response: Body, answer: Answer) -> None:
    answer.num_prompt_tokens = response["usage"]["input_tokens"]
    answer.num_generated = response["usage"]["output_tokens"]


RESPONSES = Family(
    "responses",
    "/v1/responses",
    _response_body,
    _response_whole,
    _response_chunk,
    forms=(Form.PLAIN, Form.SCHEMA, Form.TOOL),
)
