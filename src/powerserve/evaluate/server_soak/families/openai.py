"""OpenAI's chats and completions, and the grammars that we and llama.cpp add."""

from __future__ import annotations

from powerserve.evaluate.server_soak.families.base import Answer, Body, Chunk, Family, Wish
from powerserve.evaluate.server_soak.questions import Form, schema_of


def _openai_body(wish: Wish) -> Body:
    body: Body = {
        "model": wish.model,
        "max_tokens": wish.max_tokens,
        "temperature": wish.temperature,
    }
    if wish.is_stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    match wish.form:
        case Form.SCHEMA:
            schema = {"name": "mark", "schema": schema_of(wish.mark), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        case Form.REGEX:
            body["regex"] = wish.mark
        case Form.LARK:
            body["grammar"] = f'start: "{wish.mark}"'
        case Form.GBNF:
            body["grammar"] = f'root ::= "{wish.mark}"'
    return body | wish.extra


def _chat_body(wish: Wish) -> Body:
    body = _openai_body(wish) | {"messages": wish.question.messages}
    if wish.form is Form.TOOL:
        function = {"name": "set_mark", "parameters": schema_of(wish.mark)}
        body["tools"] = [{"type": "function", "function": function}]
        body["tool_choice"] = "required"
    return body


def _chat_whole(body: Body, answer: Answer) -> None:
    _openai_usage(body, answer)
    for choice in body["choices"]:
        _chat_part(choice, choice["message"], answer)


def _chat_chunk(chunk: Chunk, answer: Answer) -> None:
    _openai_usage(chunk, answer)
    for choice in chunk["choices"]:
        _chat_part(choice, choice["delta"], answer)


def _chat_part(choice: Chunk, part: Body, answer: Answer) -> None:
    answer.add(part.get("content"), choice["index"])
    for call in part.get("tool_calls") or ():
        answer.add(call["function"].get("arguments"), choice["index"])
    for each in (choice.get("logprobs") or {}).get("content") or ():
        answer.logprob_tokens.append(each["token"])


def _text_body(wish: Wish) -> Body:
    return _openai_body(wish) | {"prompt": wish.question.beginning}


def _text_whole(body: Body, answer: Answer) -> None:
    _openai_usage(body, answer)
    for choice in body["choices"]:
        answer.add(choice["text"], choice["index"])
        answer.logprob_tokens += (choice.get("logprobs") or {}).get("tokens") or ()


def _openai_usage(body: Body, answer: Answer) -> None:
    if usage := body.get("usage"):
        answer.num_prompt_tokens = usage["prompt_tokens"]
        answer.num_generated = usage["completion_tokens"]


CHAT = Family(
    "chat", "/v1/chat/completions", _chat_body, _chat_whole, _chat_chunk, forms=tuple(Form)
)
COMPLETIONS = Family(
    "completions",
    "/v1/completions",
    _text_body,
    _text_whole,
    _text_whole,
    forms=(Form.PLAIN, Form.SCHEMA, Form.REGEX, Form.LARK, Form.GBNF),
    is_chat=False,
)
