"""Ollama's chats and texts."""

from __future__ import annotations

from powerserve.evaluate.server_soak.families.base import Answer, Body, Chunk, Family, Wish
from powerserve.evaluate.server_soak.questions import Form, schema_of


def _fields(wish: Wish) -> Body:
    options = {"num_predict": wish.max_tokens, "temperature": wish.temperature}
    body: Body = {"model": wish.model, "stream": wish.is_stream, "options": options}
    if wish.form is Form.SCHEMA:
        body["format"] = schema_of(wish.mark)
    return body | wish.extra


def _chat_body(wish: Wish) -> Body:
    return _fields(wish) | {"messages": wish.question.messages}


def _generate_body(wish: Wish) -> Body:
    return _fields(wish) | {"prompt": wish.question.text}


def _line(line: Chunk, answer: Answer) -> None:
    answer.add(line["message"]["content"] if "message" in line else line["response"])
    if line["done"]:
        answer.num_prompt_tokens = line["prompt_eval_count"]
        answer.num_generated = line["eval_count"]
        answer.is_complete = True


_FORMS = (Form.PLAIN, Form.SCHEMA)
CHAT = Family("ollama chat", "/api/chat", _chat_body, _line, _line, forms=_FORMS)
GENERATE = Family("generate", "/api/generate", _generate_body, _line, _line, forms=_FORMS)
