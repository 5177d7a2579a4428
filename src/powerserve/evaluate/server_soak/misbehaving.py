"""Clients that leave, dawdle, or send what nobody should."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

from powerserve.evaluate.server_soak.asking import judge
from powerserve.evaluate.server_soak.families import FAMILIES, WrongAnswer
from powerserve.evaluate.server_soak.http_client import Connection, ConnectionLost, Request
from powerserve.evaluate.server_soak.hub import REPO
from powerserve.evaluate.server_soak.malformed import malformed
from powerserve.evaluate.server_soak.setting import Setting, is_refused

LEFT = "left"
_JSON = ("content-type", "application/json")
_CHAT = "/v1/chat/completions"
_NO_HTTP = (
    b"\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40) + b"\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999999999999999\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\n2\r\n{}\r\nffffffffffffffffffffff\r\n",
    b"\x00" * 500 + b"\r\n\r\n",
    b"GET /" + b"%00%ff%2e%2e/" * 20 + b" HTTP/1.0\r\n\r\n",
)


async def leave(setting: Setting, chance: random.Random) -> str:
    """Ask, and hang up somewhere on the way: politely or not."""
    async with setting.connected() as connection:
        with suppress(ConnectionLost, TimeoutError):
            async with asyncio.timeout(chance.uniform(0.1, 3)):
                await _begin_and_stop(setting, connection, chance)
        if chance.random() < 0.5:
            connection.abort()
    return LEFT


async def _begin_and_stop(setting: Setting, connection: Connection, chance: random.Random) -> None:
    family, wish = setting.wish(chance)
    head, body = connection.encode(Request.post(family.path, family.body(wish)))
    match chance.choice(("head", "body", "answer", "stream", "stream")):
        case "head":
            await connection.send(head[: chance.randrange(len(head))])
        case "body":
            await connection.send(head + body[: chance.randrange(len(body))])
        case "answer":
            await connection.send(head + body)
        case "stream":
            await connection.send(head + body)
            await _read_some(connection, chance.randint(1, 8))
    await asyncio.sleep(chance.uniform(0, 0.3))


async def _read_some(connection: Connection, num_pieces: int) -> None:
    async for _ in connection.pieces():
        num_pieces -= 1
        if num_pieces == 0:
            return


async def ignore(setting: Setting, chance: random.Random) -> str:
    """Ask for a long stream, read none of it, and leave."""
    async with setting.connected(is_deaf=True) as connection:
        body = {
            **{"model": setting.model(chance), "stream": True, "ignore_eos": True},
            **{"logprobs": True, "top_logprobs": 20, "max_tokens": 250},
            "messages": chance.choice(setting.questions).messages,
        }
        head, rest = connection.encode(Request.post(_CHAT, body))
        await connection.send(head + rest)
        await asyncio.sleep(chance.uniform(0.5, 4))
        connection.abort()
    return LEFT


async def read_slowly(setting: Setting, chance: random.Random) -> str:
    """Take an answer drop by drop."""
    family, wish = setting.wish(chance)
    async with setting.connected(is_deaf=True) as connection:
        head, body = connection.encode(Request.post(family.path, family.body(wish)))
        await connection.send(head + body)
        reply = await connection.read(pause_s=chance.uniform(0.005, 0.03), block_bytes=128)
    return judge(setting, family, wish, reply)


async def write_slowly(setting: Setting, chance: random.Random) -> str:
    """Hand in a request drop by drop."""
    family, wish = setting.wish(chance)
    async with setting.connected() as connection:
        head, body = connection.encode(Request.post(family.path, family.body(wish)))
        text, size = head + body, chance.randint(20, 200)
        for start in range(0, len(text), size):
            await connection.send(text[start : start + size])
            await asyncio.sleep(chance.uniform(0, 0.1))
        reply = await connection.read()
    return judge(setting, family, wish, reply)


async def talk_nonsense(setting: Setting, chance: random.Random) -> str:
    """Send a body that is not as it should be; then, on the same connection, something sound."""
    family, wish = setting.wish(chance)
    body = malformed(family.body(wish), chance)
    async with setting.connected() as connection:
        reply = await connection.ask(Request("POST", family.path, body))
        if reply.status != 200 and not is_refused(reply):
            _expect_error(reply.body)
        await _check_connection(connection)
    return f"status {reply.status}"


async def send_too_much(setting: Setting, chance: random.Random) -> str:
    """A body that is too large, with or without its length, with or without the right type."""
    family = chance.choice(FAMILIES)
    body = b" " * (setting.plan.max_body_bytes + chance.randint(1, 1 << 20)) + b"{}"
    headers = [chance.choice((_JSON, ("content-type", "text/plain")))]
    if chance.random() < 0.5:
        headers.append(("transfer-encoding", "chunked"))
    if chance.random() < 0.5:
        headers.append(("connection", "close"))
    async with setting.connected() as connection:
        reply = await connection.ask(Request("POST", family.path, body, headers))
    if reply.status != 413:
        raise WrongAnswer(f"status {reply.status} to a body that is too large")
    return "status 413"


async def send_no_http(setting: Setting, chance: random.Random) -> str:
    """Bytes that are no request, or a head that never ends: an answer if any must be an error."""
    data = chance.choice(_NO_HTTP)
    if chance.random() < 0.3:
        data = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * chance.randint(1, 200_000)
        data += chance.choice((b"", b"\r\n\r\n"))
    async with setting.connected() as connection:
        with suppress(ConnectionLost, TimeoutError):
            await connection.send(data)
            async with asyncio.timeout(chance.uniform(0.2, 1)):
                answer = b"".join([piece async for piece in connection.pieces()])
                if b" 200 OK" in answer[:20] and len(data) > 40_000:
                    raise WrongAnswer("a head of any size is accepted")
    return LEFT


async def pull_and_leave(setting: Setting, chance: random.Random) -> str:
    """Begin a download that would never end."""
    async with setting.connected() as connection:
        body = {"model": REPO, "stream": chance.random() < 0.8}
        head, rest = connection.encode(Request.post("/api/pull", body))
        await connection.send(head + rest)
        with suppress(TimeoutError, ConnectionLost):
            async with asyncio.timeout(chance.uniform(0.2, 2)):
                await _read_some(connection, chance.randint(1, 20))
        connection.abort()
    return LEFT


async def _check_connection(connection: Connection) -> None:
    """What follows an error is answered as if nothing had been."""
    if connection.is_reusable:
        reply = await connection.ask(Request("GET", "/health", headers=()))
        if reply.status != 200:
            raise WrongAnswer(f"status {reply.status} of /health after an error")


def _expect_error(body: bytes) -> None:
    if b'"error"' not in body:
        raise WrongAnswer(f"no family's error: {body[:300]!r}")
