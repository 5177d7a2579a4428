"""HTTP/1.1 as clients speak it, and as none should: connections whose every byte is ours to send.

`evaluate/server_load/http_stream.py` asks once and well; here requests may be cut, slow or wrong.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import h11
import msgspec

_READ_BYTES = 1 << 16
_DEAF_BYTES = 1 << 11
_JSON = ("content-type", "application/json")


class ConnectionLost(Exception):
    """The server hung up without a whole answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """The body's value. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)


@dataclass(frozen=True, slots=True)
class Request:
    """What to send."""

    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = (_JSON,)

    @classmethod
    def post(cls, path: str, value: Any) -> Request:
        """A value as JSON."""
        return cls("POST", path, msgspec.json.encode(value))


class Connection:
    """One connection to the server; requests follow each other on it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, host: str, port: int, *, is_deaf: bool = False) -> Connection:
        """Connect; a deaf client takes next to nothing that it does not read. Raises OSError."""
        link = socket.socket()
        link.setblocking(False)
        if is_deaf:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DEAF_BYTES)
        try:
            await asyncio.get_running_loop().sock_connect(link, (host, port))
        except OSError:
            link.close()
            raise
        limit = _DEAF_BYTES if is_deaf else _READ_BYTES
        return cls(*await asyncio.open_connection(sock=link, limit=limit))

    @property
    def is_reusable(self) -> bool:
        """Whether another request may follow."""
        return self._http.our_state is h11.IDLE and not self.reader.at_eof()

    def encode(self, request: Request) -> tuple[bytes, bytes]:
        """Head and body as bytes, for the caller to send; nothing is sent."""
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        headers = [("host", "localhost"), *request.headers]
        if not any(name == "transfer-encoding" for name, _ in headers):
            headers.append(("content-length", str(len(request.body))))
        head = h11.Request(method=request.method, target=request.path, headers=headers)
        parts = [self._http.send(event) or b"" for event in (head, h11.Data(request.body))]
        return parts[0], parts[1] + (self._http.send(h11.EndOfMessage()) or b"")

    async def send(self, data: bytes) -> None:
        """Send bytes as they are. Raises ConnectionLost."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except OSError as error:
            raise ConnectionLost(f"while sending: {error}") from None

    async def read(self, *, pause_s: float = 0.0, block_bytes: int = _READ_BYTES) -> Reply:
        """The whole answer, in blocks with pauses between them. Raises ConnectionLost."""
        head = await self._next(h11.Response, block_bytes)
        pieces = []
        while isinstance(event := await self._event(block_bytes), h11.Data):
            pieces.append(bytes(event.data))
            if pause_s:
                await asyncio.sleep(pause_s)
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        self._begin_next()
        return Reply(head.status_code, headers, b"".join(pieces))

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's bytes, head and body, as they come. Raises ConnectionLost."""
        while data := await self._receive(_READ_BYTES):
            yield data

    async def ask(self, request: Request) -> Reply:
        """Send a request and read its answer. Raises ConnectionLost."""
        head, body = self.encode(request)
        await self.send(head + body)
        return await self.read()

    def abort(self) -> None:
        """Hang up in the rudest way."""
        self.writer.transport.abort()

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    def _begin_next(self) -> None:
        if self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    async def _next(self, kind: type[h11.Response], block_bytes: int) -> h11.Response:
        while not isinstance(event := await self._event(block_bytes), kind):
            pass
        return event

    async def _event(self, block_bytes: int) -> h11.Event:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._receive(block_bytes))
        except h11.RemoteProtocolError as error:
            raise ConnectionLost(f"while answering: {error}") from None
        if isinstance(event, h11.ConnectionClosed) or not isinstance(event, h11.Event):
            raise ConnectionLost("instead of answering")
        return event

    async def _receive(self, size: int) -> bytes:
        try:
            return await self.reader.read(size)
        except OSError as error:
            raise ConnectionLost(f"while answering: {error}") from None


@asynccontextmanager
async def connected(host: str, port: int, *, is_deaf: bool = False) -> AsyncIterator[Connection]:
    """A connection for the time of a block. Raises ConnectionLost."""
    try:
        connection = await Connection.open(host, port, is_deaf=is_deaf)
    except OSError as error:
        raise ConnectionLost(f"while connecting: {error}") from None
    try:
        yield connection
    finally:
        await connection.close()
