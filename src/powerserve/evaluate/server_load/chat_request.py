"""One chat, timed as its reader sees it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import h11
import msgspec

from powerserve.evaluate.server_load.http_stream import HttpReply, post
from powerserve.evaluate.server_load.target import Target

_OK = 200
_DONE = b"[DONE]"


@dataclass(slots=True)
class ChatRecord:
    """What became of one request. Times are those of `perf_counter`."""

    began_s: float
    arrivals_s: list[float] = field(default_factory=list)  # of each piece of text
    ended_s: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # of the prompt, where the server says so
    num_generated: int = 0  # as the server counts; the pieces where it does not
    error: str | None = None  # its kind
    detail: str = ""  # what the server said about it

    @property
    def first_token_s(self) -> float:
        """How long the reader waited for the first piece of text."""
        return self.arrivals_s[0] - self.began_s

    @property
    def gaps_s(self) -> list[float]:
        """How long the reader waited for each later piece."""
        return [
            later - earlier
            for earlier, later in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)
        ]


class _ChatError(Exception):
    """The server answered, but not as it should."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        self.detail = detail


async def timed_chat(target: Target, body: dict[str, Any], timeout_s: float) -> ChatRecord:
    """Ask once and note when each piece of the answer came. Errors are in the record."""
    record = ChatRecord(began_s=perf_counter())
    try:
        async with asyncio.timeout(timeout_s), post(target, msgspec.json.encode(body)) as reply:
            await _read(reply, record)
    except _ChatError as error:
        record.error, record.detail = error.kind, error.detail
    except TimeoutError:
        record.error = "timeout"
    except ConnectionRefusedError:
        record.error = "connection refused"
    except (OSError, h11.RemoteProtocolError):
        record.error = "connection broken"
    record.ended_s = perf_counter()
    record.num_generated = record.num_generated or len(record.arrivals_s)
    return record


async def _read(reply: HttpReply, record: ChatRecord) -> None:
    if reply.status != _OK:
        raise _ChatError(f"status {reply.status}", _message(await _whole(reply)))
    async for data in _events(reply.body()):
        if data == _DONE:
            break
        _take(_parsed(data), record)
    else:
        raise _ChatError("connection broken")
    if not record.arrivals_s:
        raise _ChatError("no text")


def _take(chunk: dict[str, Any], record: ChatRecord) -> None:
    if "error" in chunk:
        raise _ChatError("error in the stream", _message(msgspec.json.encode(chunk)))
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content"):
            record.arrivals_s.append(perf_counter())
    if usage := chunk.get("usage"):
        record.num_prompt_tokens = usage.get("prompt_tokens") or 0
        record.num_generated = usage.get("completion_tokens") or 0
        details = usage.get("prompt_tokens_details") or {}
        record.num_cached_tokens = details.get("cached_tokens") or 0


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise _ChatError("not JSON") from None


async def _whole(reply: HttpReply) -> bytes:
    return b"".join([piece async for piece in reply.body()])


def _message(body: bytes) -> str:
    """The sentence in an error's body, in OpenAI's shape or a flat one."""
    try:
        error = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ""
    error = error.get("error", error) if isinstance(error, dict) else error
    return str(error.get("message", "")) if isinstance(error, dict) else ""


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event; servers use one line for it."""
    rest = b""
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip()
