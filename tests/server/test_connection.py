"""Clients that take their time, and what no client should send, down to the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from powerserve.server.connection import Connection
from raw_http import exchange, raw_connection, read_to_end, statuses
from server_process import serving
from tiny_models import write_tiny_model

HEAD = b"Host: localhost\r\n"
JSON = HEAD + b"Content-Type: application/json\r\n"
HEALTH = b"GET /health HTTP/1.1\r\n" + HEAD
SHORT_S = 0.3


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that wants a key and takes small bodies only."""
    model = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with serving("-m", model, "--api-key", "key", "--max-body-mib", "1") as process:
        yield process.url


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers after a while, whether or not it has the body; /body waits for that."""
    await asyncio.sleep(3 * SHORT_S if scope["path"] == "/slow" else 0)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening() -> AsyncIterator[int]:
    """The port of a server whose connections have little patience."""
    config = uvicorn.Config(application, ws="none", lifespan="off", log_config=None)
    config.load()
    make = partial(
        Connection,
        head_timeout_s=SHORT_S,
        config=config,
        server_state=ServerState(),
        app_state={},
    )
    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answer_to(port: int, first: bytes, *drops: bytes) -> bytes:
    """What comes back before the server hangs up, if the drops follow one by one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    answer = asyncio.create_task(reader.read())
    for drop in drops:
        await asyncio.sleep(SHORT_S / 4)
        writer.write(drop)
    try:
        return await answer
    finally:
        writer.close()


def run(first: bytes, *drops: bytes) -> bytes:
    async def talk() -> bytes:
        async with listening() as port:
            return await answer_to(port, first, *drops)

    return asyncio.run(talk())


@pytest.mark.parametrize("first", [b"", b"GET / HT", HEALTH], ids=["nothing", "a part", "all but"])
def test_a_head_that_never_ends_is_not_waited_for(first: bytes) -> None:
    assert run(first) == b""


def test_drops_do_not_buy_time() -> None:
    """Each byte would start uvicorn's own patience anew; here the head as a whole has its time."""
    assert run(b"GET /", *[b"x"] * 20) == b""


def test_the_second_head_has_its_time_too() -> None:
    answers = run(HEALTH + b"\r\n", *[b"G"] * 20)
    assert statuses(answers) == [204]


def test_an_answer_may_take_longer_than_a_head() -> None:
    request = b"GET /slow HTTP/1.1\r\nConnection: close\r\n" + HEAD + b"\r\n"
    assert statuses(run(request)) == [204]


def test_a_body_that_nobody_waits_for_does_not_keep_the_connection() -> None:
    """The answer is out, and the client goes on sending what it has announced."""
    request = b"POST / HTTP/1.1\r\nContent-Length: 1000\r\n" + HEAD + b"\r\n"
    assert statuses(run(request, *[b"x"] * 20)) == [204]


NO_HTTP = {
    "no request": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": HEALTH + HEAD + b"\r\n",
    "two lengths": b"POST /tokenize HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": b"POST /tokenize HTTP/1.1\r\nContent-Length: -2\r\n" + JSON + b"\r\n{}",
    "an odd coding": b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n"
    + JSON
    + b"\r\n",
    "a line within a header": HEALTH + b"X: a\rb\r\n\r\n",
    "a space before the colon": HEALTH + b"Content-Length : 5\r\n\r\nhello",
    "a broken chunk": b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX-Api-Key: key\r\n"
    + JSON
    + b"\r\n2\r\n{}\r\nzz\r\n",
    "a long line": b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "a long header": HEALTH + b"X: " + b"x" * 500_000,
}


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_request_is_told_so_once(url: str, data: bytes) -> None:
    """The client gets the answer, though it may be sending still; then the connection is over."""
    assert statuses(exchange(url, data)) == [400]


@pytest.mark.parametrize(
    "headers",
    [b"".join(b"X%d: y\r\n" % index for index in range(1000)), b"X: " + b"y" * 40_000 + b"\r\n"],
    ids=["many", "large"],
)
def test_heads_that_arrive_at_once_have_bounds_too(url: str, headers: bytes) -> None:
    request = HEALTH + headers + b"Connection: close\r\n\r\n"
    assert statuses(exchange(url, request))[0] in (400, 431)  # as the pieces happen to fall


def test_a_request_within_a_body_is_not_seen(url: str) -> None:
    """A proxy that goes by the length passes on one request where chunks make it two."""
    inner = HEALTH + b"\r\n"
    body = b"0\r\n\r\n" + inner
    length = b"Content-Length: %d\r\n" % len(body)
    for framing in (
        length + b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\n" + length,
    ):
        head = b"POST /tokenize HTTP/1.1\r\nX-Api-Key: key\r\n" + framing + JSON + b"\r\n"
        answers = exchange(url, head + body)
        assert statuses(answers) == [400], answers
        assert b"either the header Content-Length or Transfer-Encoding" in answers


def test_requests_in_a_row_are_answered_in_order(url: str) -> None:
    body = b'{"content": "hello"}'
    post = b"POST /tokenize HTTP/1.1\r\nX-Api-Key: key\r\nContent-Length: %d\r\n" % len(body)
    pipeline = (
        HEALTH + b"\r\n" + post + JSON + b"\r\n" + body + HEALTH + b"Connection: close\r\n\r\n"
    )
    answers = exchange(url, pipeline)
    assert statuses(answers) == [200, 200, 200]
    first, second, third = answers.split(b"HTTP/1.1 ")[1:]
    assert b'"status":"ok"' in first and b'"tokens"' in second and b'"status":"ok"' in third


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/tokenize", b"key", 413),
        ("/tokenize", b"no", 401),
        ("/nowhere", b"key", 404),
        ("/health", b"key", 405),
    ],
)
def test_who_sends_first_and_reads_then_gets_the_answer(
    url: str, path: str, key: bytes, status: int
) -> None:
    """A connection that is closed with bytes unread would throw away what is on its way back."""
    size = 2_000_000
    head = b"POST %s HTTP/1.1\r\nConnection: close\r\nX-Api-Key: %s\r\n" % (path.encode(), key)
    head += b"Content-Length: %d\r\n" % size + JSON + b"\r\n"
    answers = exchange(url, head, *[b" " * 50_000] * (size // 50_000))
    assert statuses(answers) == [status] and b'"error"' in answers


def test_chunks_need_no_length(url: str) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nX-Api-Key: key\r\nTransfer-Encoding: chunked\r\n" + JSON
    head += b"Connection: close\r\n\r\n"
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (b'{"content"', b': "hello"}', b"")]
    assert statuses(exchange(url, head, *chunks)) == [200]
    too_many = [b"10000\r\n" + b" " * 0x10000 + b"\r\n"] * 20
    assert statuses(exchange(url, head, *too_many, chunks[-1])) == [413]


def test_a_client_that_asks_first_is_told_before_it_sends(url: str) -> None:
    head = b"POST /tokenize HTTP/1.1\r\nX-Api-Key: key\r\nExpect: 100-continue\r\n" + JSON
    body = b'{"content": "hello"}'
    with raw_connection(url) as link:
        link.sendall(head + b"Content-Length: 9999999\r\n\r\n")
        assert statuses(read_to_end(link)) == [413]
    with raw_connection(url) as link:
        link.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert link.recv(100).startswith(b"HTTP/1.1 100")
        link.sendall(body)
        assert statuses(read_to_end(link)) == [200]


def test_another_server_s_address_in_the_request_line(url: str) -> None:
    request = b"GET http://evil.example/v1/models HTTP/1.1\r\nX-Api-Key: key\r\n" + HEAD
    assert statuses(exchange(url, request + b"Connection: close\r\n\r\n")) == [404]
