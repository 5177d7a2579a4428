"""What a question is in any API family, and what its answer is read into."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from powerserve.evaluate.server_soak.http_client import Reply
from powerserve.evaluate.server_soak.questions import Form, Question

Body = dict[str, Any]
Chunk = dict[str, Any]


class WrongAnswer(Exception):
    """An answer that is not what its request asked for."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for."""

    question: Question
    model: str
    form: Form = Form.PLAIN
    mark: str = ""
    is_stream: bool = False
    max_tokens: int = 16
    temperature: float = 0.0
    extra: Body = field(default_factory=dict)  # fields of the family's own


@dataclass(slots=True)
class Answer:
    """What came back, whatever the family: a text per choice; for calls, their arguments."""

    texts: dict[int, str] = field(default_factory=dict)
    num_prompt_tokens: int | None = None
    num_generated: int | None = None
    is_complete: bool = False
    logprob_tokens: list[str] = field(default_factory=list)

    def add(self, text: str | None, choice: int = 0) -> None:
        """The next text of a choice."""
        self.texts[choice] = self.texts.get(choice, "") + (text or "")


@dataclass(frozen=True, slots=True)
class Family:
    """An API: how to ask, and how to read a whole answer or the chunks of a stream."""

    name: str
    path: str
    body: Callable[[Wish], Body]
    whole: Callable[[Body, Answer], None]
    chunk: Callable[[Chunk, Answer], None]
    forms: tuple[Form, ...]
    is_chat: bool = True  # the question goes through the model's template

    def read(self, reply: Reply, wish: Wish) -> Answer:
        """The answer in a reply. Raises WrongAnswer for what cannot be read."""
        answer = Answer()
        try:
            if wish.is_stream:
                for chunk in _chunks(reply.body, answer):
                    self.chunk(chunk, answer)
            else:
                self.whole(reply.json(), answer)
                answer.is_complete = True
        except (msgspec.DecodeError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"unreadable: {error!r} in {reply.body[:300]!r}") from None
        if not answer.is_complete:
            raise WrongAnswer(f"the stream has no end: {reply.body[-300:]!r}")
        return answer


def _chunks(stream: bytes, answer: Answer) -> Iterator[Chunk]:
    """The values of server-sent events, or of lines."""
    for line in stream.split(b"\n"):
        if line.startswith(b"event:") or not line.strip():
            continue
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            answer.is_complete = True
            return
        chunk = msgspec.json.decode(data)
        if chunk.get("error") or chunk.get("type") == "error":
            raise WrongAnswer(f"an error in the stream: {data[:300]!r}")
        yield chunk
