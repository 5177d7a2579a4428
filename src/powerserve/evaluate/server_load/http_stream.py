"""One POST over HTTP/1.1 whose reply is read as it comes.

A connection serves one request: opening it is a part of what a client waits for, and a tenth of a
millisecond on the machine itself. h11, which uvicorn brings, keeps to the protocol; a larger client
library would take processor time from the server that is measured beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import h11

from powerserve.evaluate.server_load.target import Target

_READ_BYTES = 1 << 16


class HttpReply:
    """The reply to a request."""

    def __init__(self, reader: asyncio.StreamReader, connection: h11.Connection) -> None:
        self._reader = reader
        self._connection = connection
        self.status = 0

    async def begin(self) -> None:
        """Wait for the status. Raises OSError or h11.RemoteProtocolError."""
        while not isinstance(event := await self._next(), h11.Response):
            pass
        self.status = event.status_code

    async def body(self) -> AsyncIterator[bytes]:
        """Pieces of the body. Raises OSError or h11.RemoteProtocolError if it is broken off."""
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def _next(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            self._connection.receive_data(await self._reader.read(_READ_BYTES))
        return event


@asynccontextmanager
async def post(target: Target, body: bytes) -> AsyncIterator[HttpReply]:
    """Send a chat and wait for the status. Raises OSError or h11.RemoteProtocolError."""
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.tls)
    try:
        connection = h11.Connection(h11.CLIENT)
        for part in _request(target, body):
            writer.write(connection.send(part) or b"")
        await writer.drain()
        reply = HttpReply(reader, connection)
        await reply.begin()
        yield reply
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def _request(target: Target, body: bytes) -> list[h11.Event]:
    headers = [*target.headers, ("content-length", str(len(body))), ("connection", "close")]
    request = h11.Request(method="POST", target=target.chat_path, headers=headers)
    return [request, h11.Data(data=body), h11.EndOfMessage()]
