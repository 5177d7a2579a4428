"""A server with OpenAI's API answers."""

from __future__ import annotations

import base64
import mimetypes
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from powerserve.core.errors import ConfigError, UsageError
from powerserve.evaluate.multiple_choice.chooser import Choice, ChooseBy, ImagesRefusedError
from powerserve.evaluate.multiple_choice.prompts import (
    chat_messages,
    completion_prompt,
    find_letter,
)
from powerserve.evaluate.multiple_choice.question import Question
from powerserve.storage.network import NETWORK_ERRORS, explain, http_opener

_NUM_LOGPROBS = 20  # alternatives that are asked for: the most that servers commonly give
_REFUSALS = frozenset({400, 415, 422, 501})  # of a request that is not understood
_BUSY = frozenset({429, 502, 503})
_IMAGE_MARK = re.compile(r"<image (\d+)>")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and what it wants to be told."""

    url: str  # of the server or of its /v1
    model: str
    api_key: str = field(default="", repr=False)
    timeout_s: float = 600.0
    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)  # before a busy server is asked again

    def __post_init__(self) -> None:
        if not re.match(r"https?://[^/]", self.url):
            raise UsageError(
                f"{self.url!r} is not the URL of a server, as in http://localhost:8080"
            )

    def address(self, path: str) -> str:
        """The URL of `path`, which stands behind /v1."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1/{path}"


class _Refused(Exception):
    """The server does not understand a request."""


class _Chance(msgspec.Struct):
    token: str
    logprob: float


class _Token(msgspec.Struct):
    top_logprobs: list[_Chance]


class _Logprobs(msgspec.Struct):
    """As OpenAI's completions have them, or as llama.cpp's do."""

    top_logprobs: list[dict[str, float]] | None = None
    content: list[_Token] | None = None

    @property
    def first(self) -> dict[str, float]:
        """Those of the first token."""
        if self.top_logprobs:
            return self.top_logprobs[0]
        chances = self.content[0].top_logprobs if self.content else []
        return {chance.token: chance.logprob for chance in chances}


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    logprobs: _Logprobs | None = None


class _Answer(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(min_length=1)]


class EndpointChooser:
    """Asks a server, one question after another."""

    def __init__(self, endpoint: Endpoint, choose_by: ChooseBy, max_tokens: int) -> None:
        """`max_tokens` of a reply, if answers are generated."""
        self._endpoint = endpoint
        self._by_logprob = choose_by is ChooseBy.LOGPROB
        self._max_tokens = max_tokens
        self._opener = http_opener()

    def choose(self, question: Question, examples: Sequence[Question]) -> Choice:
        """Answer one question.

        Raises:
            ImagesRefusedError: the question has images, and the server does not take it.
            UsageError: the server cannot be reached, or refuses the question.
        """
        if question.images and self._by_logprob:
            raise ImagesRefusedError("completions have no images; use --choose-by generation")
        try:
            if self._by_logprob:
                return self._likeliest(question, examples)
            return self._reply(question, examples)
        except _Refused as refusal:
            if question.images:
                raise ImagesRefusedError(str(refusal)) from None
            raise UsageError(str(refusal)) from None

    def _likeliest(self, question: Question, examples: Sequence[Question]) -> Choice:
        answer = self._post(
            "completions",
            {
                "prompt": completion_prompt(question, examples),
                "max_tokens": 1,
                "temperature": 0,
                "logprobs": _NUM_LOGPROBS,
            },
        )
        chances = answer.logprobs.first if answer.logprobs is not None else {}
        if not chances:
            raise UsageError("the server gives no log-probabilities; use --choose-by generation")
        ranked = sorted(chances, key=lambda token: -chances[token])
        letters = (token.strip() for token in ranked)
        return Choice(next((each for each in letters if each in [*question.letters]), None))

    def _reply(self, question: Question, examples: Sequence[Question]) -> Choice:
        messages: list[dict[str, Any]] = [*chat_messages(question, examples)]
        if question.images:
            content = messages[-1]["content"]
            messages[-1]["content"] = list(_parts(content, question.images))
        answer = self._post(
            "chat/completions",
            {"messages": messages, "max_tokens": self._max_tokens, "temperature": 0},
        )
        reply = (answer.message and answer.message.content) or ""
        return Choice(find_letter(reply, question.letters), reply)

    def _post(self, path: str, body: Mapping[str, Any]) -> _Choice:
        """What the server answers. Raises _Refused, UsageError."""
        headers = {"Content-Type": "application/json"}
        if self._endpoint.api_key:
            headers["Authorization"] = f"Bearer {self._endpoint.api_key}"
        data = msgspec.json.encode({"model": self._endpoint.model, **body})
        url = self._endpoint.address(path)
        request = urllib.request.Request(url, data, headers)
        try:
            return msgspec.json.decode(self._patiently(request), type=_Answer).choices[0]
        except urllib.error.HTTPError as error:
            sentence = f"{explain(error, url)}: {_error_text(error.read())}"
            raise (_Refused if error.code in _REFUSALS else UsageError)(sentence) from None
        except NETWORK_ERRORS as error:
            raise UsageError(
                f"{explain(error, url)}; is a server running at {self._endpoint.url}?"
            ) from None
        except msgspec.DecodeError as error:
            raise UsageError(f"{url} does not answer as OpenAI's API does: {error}") from None

    def _patiently(self, request: urllib.request.Request) -> bytes:
        """The answer of a server that may be busy at first."""
        for wait_s in self._endpoint.waits_s:
            try:
                return self._answer(request)
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY:
                    raise
                error.close()
                time.sleep(wait_s)
        return self._answer(request)

    def _answer(self, request: urllib.request.Request) -> bytes:
        with self._opener.open(request, timeout=self._endpoint.timeout_s) as response:
            content: bytes = response.read()
            return content


def _parts(text: str, images: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """A message's text with its images in their places; those without a place come first."""
    pieces = _IMAGE_MARK.split(text)  # text, number, text, number, …, text
    placed = {int(number) for number in pieces[1::2]}
    for number, image in enumerate(images, 1):
        if number not in placed:
            yield _image_part(image)
    for index, piece in enumerate(pieces):
        if index % 2 and 1 <= int(piece) <= len(images):
            yield _image_part(images[int(piece) - 1])
        elif not index % 2 and piece.strip():
            yield {"type": "text", "text": piece}


def _image_part(image: Path) -> dict[str, Any]:
    try:
        content = base64.b64encode(image.read_bytes()).decode()
    except OSError as error:
        raise ConfigError(f"the image {image} cannot be read: {error.strerror}") from None
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{content}"}}


def _error_text(body: bytes) -> str:
    """What a server says about an error."""
    try:
        return str(msgspec.json.decode(body)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return body.decode(errors="replace").strip()[:200] or "it does not say why"
