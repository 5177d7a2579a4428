"""A hub on this machine whose one file never arrives whole: for downloads that are given up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

REPO = "soak/Endless-GGUF"
_FILE = "Endless-Q4_0.gguf"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"
_SIZE_BYTES = 64 << 20
_BLOCK = bytes(1 << 16)
_PAUSE_S = 0.05


@asynccontextmanager
async def endless_hub() -> AsyncIterator[str]:
    """Its URL, as HF_ENDPOINT wants it."""
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/api/models/" in head.split(b"\r\n")[0]:
            await _send_listing(writer)
        else:
            await _send_endlessly(writer)
    writer.close()


async def _send_listing(writer: asyncio.StreamWriter) -> None:
    sha256 = "0" * 64
    described = {"sha256": sha256, "size": _SIZE_BYTES, "pointerSize": 130}
    file = {"rfilename": _FILE, "size": _SIZE_BYTES, "lfs": described}
    body = json.dumps({"id": REPO, "sha": _COMMIT, "siblings": [file], "tags": []}).encode()
    writer.write(_head("application/json", len(body)) + body)
    await writer.drain()


async def _send_endlessly(writer: asyncio.StreamWriter) -> None:
    writer.write(_head("application/octet-stream", _SIZE_BYTES))
    for _ in range(_SIZE_BYTES // len(_BLOCK) - 1):
        writer.write(_BLOCK)
        await writer.drain()
        await asyncio.sleep(_PAUSE_S)


def _head(kind: str, length: int) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n"
        "Connection: close\r\n\r\n"
    ).encode()
