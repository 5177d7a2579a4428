"""Bytes to a server and back, for what no HTTP client would send."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

TIMEOUT_S = 30


@contextmanager
def raw_connection(url: str) -> Iterator[socket.socket]:
    """A connection to the server at `url`."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), TIMEOUT_S) as link:
        yield link


def read_to_end(link: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    pieces = []
    while piece := link.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


def exchange(url: str, *pieces: bytes) -> bytes:
    """Send all pieces; all that comes back until the server hangs up."""
    with raw_connection(url) as link:
        for piece in pieces:
            link.sendall(piece)
        return read_to_end(link)


def statuses(answers: bytes) -> list[int]:
    """The status of each answer, none of which has a body with a status line in it."""
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]
