"""/api/generate: an answer to one text, or its continuation."""

from __future__ import annotations

from typing import Any

import msgspec

from powerserve.server.errors import invalid
from powerserve.server.ollama.context import Turn, decode_context, encode_context
from powerserve.server.ollama.fields import GenerationFields
from powerserve.server.ollama.lines import CONTENT_TYPE, AnswerWriter, Part
from powerserve.server.ollama.loading import load_or_unload
from powerserve.server.request import ChatPrompt, TextPrompt
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Events, Reply

_UNSUPPORTED = {
    "suffix": "put the text around the gap into `prompt`, with `raw`",
    "template": "write the whole prompt yourself, with `raw`",
    "images": "this server reads text only",
}


class GenerateRequest(GenerationFields, kw_only=True):
    """The body."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    context: list[int] | None = None
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None

    def turns(self) -> list[Turn]:
        """The conversation: what was said before, and the new text. Raises ApiError."""
        before = decode_context(self.context) if self.context else []
        if self.system:
            system = [Turn("system", self.system)]
            before = system + [turn for turn in before if turn.role != "system"]
        return [*before, Turn("user", self.prompt or "")]


async def generate(serving: Serving, call: Call) -> Reply | Events:
    """Answer a text; without one, load the model or unload it."""
    body = call.decode(GenerateRequest)
    for name, advice in _UNSUPPORTED.items():
        if getattr(body, name):
            raise invalid(f"this server does not support `{name}`; {advice}", name)
    if not body.prompt:
        return Reply(await load_or_unload(serving, body, _shape))
    writer, prompt = _prepared(body)
    answer = body.answer(serving, prompt)
    if body.is_stream:
        return Events(writer.frames(answer), CONTENT_TYPE)
    return Reply(await writer.whole(answer))


def _prepared(body: GenerateRequest) -> tuple[AnswerWriter, ChatPrompt | TextPrompt]:
    if body.raw:
        writer = AnswerWriter(body.model, _shape, shows_thinking=body.shows_thinking)
        return writer, TextPrompt(body.prompt or "")
    turns = body.turns()

    def ending(text: str) -> dict[str, Any]:
        return {"context": encode_context([*turns, Turn("assistant", text)])}

    writer = AnswerWriter(body.model, _shape, shows_thinking=body.shows_thinking, ending=ending)
    return writer, ChatPrompt(msgspec.to_builtins(turns), variables=body.variables())


def _shape(part: Part) -> dict[str, Any]:
    return {"response": part.text} | ({"thinking": part.thinking} if part.thinking else {})
