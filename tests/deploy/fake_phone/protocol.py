"""adb's transport: packets that carry many streams over one connection.

Source: packages/modules/adb/protocol.txt of the Android Open Source Project.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Queue

HEADER = struct.Struct("<4s5I")
VERSION = 0x01000000  # the last one whose packets have checksums
MAX_PAYLOAD = 1 << 20
AUTH_TOKEN = 1


class Disconnected(Exception):
    """The other side is gone, or this stream was closed."""


@dataclass(frozen=True, slots=True)
class Packet:
    command: bytes
    arg0: int
    arg1: int
    payload: bytes = b""


class Connection:
    """One adb server that is connected to the daemon."""

    def __init__(
        self, sock: socket.socket, banner: str, serve: Callable[[Stream], None], trusts: bool
    ) -> None:
        """`serve` runs in a thread of its own for every stream; without `trusts`, none opens."""
        self._socket = sock
        self._banner = banner.encode()
        self._serve = serve
        self._trusts = trusts
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._num_opened = 0
        self.max_payload = 4096

    def run(self) -> None:
        """Handle packets until the other side is gone."""
        try:
            while True:
                self._handle(self._receive())
        except (Disconnected, OSError):
            for stream in list(self._streams.values()):
                stream.feed(None)

    def send(self, packet: Packet) -> None:
        magic = struct.unpack("<I", packet.command)[0] ^ 0xFFFFFFFF
        size, checksum = len(packet.payload), sum(packet.payload) & 0xFFFFFFFF
        header = HEADER.pack(packet.command, packet.arg0, packet.arg1, size, checksum, magic)
        with self._lock:
            self._socket.sendall(header + packet.payload)

    def forget(self, stream: Stream) -> None:
        self._streams.pop(stream.local_id, None)

    def _handle(self, packet: Packet) -> None:
        if packet.command == b"CNXN":
            self.max_payload = min(packet.arg1, MAX_PAYLOAD)
            self._greet()
        elif packet.command == b"AUTH":  # a signature: never good enough, so a key may come
            if packet.arg0 == 2:
                self.send(Packet(b"AUTH", AUTH_TOKEN, 0, bytes(20)))
        elif packet.command == b"OPEN":
            self._open(packet)
        elif stream := self._streams.get(packet.arg1):
            stream.handle(packet)

    def _greet(self) -> None:
        if self._trusts:
            self.send(Packet(b"CNXN", VERSION, MAX_PAYLOAD, self._banner))
        else:
            self.send(Packet(b"AUTH", AUTH_TOKEN, 0, bytes(20)))

    def _open(self, packet: Packet) -> None:
        self._num_opened += 1
        service = packet.payload.rstrip(b"\0").decode()
        stream = Stream(self, self._num_opened, packet.arg0, service)
        self._streams[stream.local_id] = stream
        threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _receive(self) -> Packet:
        command, arg0, arg1, size, _, _ = HEADER.unpack(self._read(HEADER.size))
        return Packet(command, arg0, arg1, self._read(size))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise Disconnected
            data += piece
        return bytes(data)


class Stream:
    """A stream that the other side opened to `service`."""

    def __init__(self, connection: Connection, local_id: int, remote_id: int, service: str) -> None:
        self.local_id = local_id
        self.service = service
        self._connection = connection
        self._remote_id = remote_id
        self._received: Queue[bytes | None] = Queue()
        self._buffer = b""
        self._may_write = threading.Semaphore(0)
        self._write_lock = threading.Lock()
        self._is_closed = False

    def accept(self) -> None:
        self._send(b"OKAY")

    def handle(self, packet: Packet) -> None:
        if packet.command == b"WRTE":
            self.feed(packet.payload)
            self._send(b"OKAY")
        elif packet.command == b"OKAY":
            self._may_write.release()
        elif packet.command == b"CLSE":
            self._connection.forget(self)
            self.feed(None)

    def feed(self, data: bytes | None) -> None:
        """Take received bytes; None when there will be no more."""
        if data is None:
            self._is_closed = True
            self._may_write.release()
        self._received.put(data)

    def read_some(self) -> bytes:
        """What came next. Raises Disconnected at the end."""
        data = self._received.get()
        if data is None:
            self._received.put(None)
            raise Disconnected
        return data

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += self.read_some()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def write(self, data: bytes) -> None:
        """Send bytes, each packet when the one before it was taken."""
        with self._write_lock:
            for start in range(0, len(data), self._connection.max_payload):
                self._send(b"WRTE", data[start : start + self._connection.max_payload])
                self._may_write.acquire()

    def close(self) -> None:
        if not self._is_closed:
            self._send(b"CLSE")
            self._connection.forget(self)
            self._is_closed = True

    def _send(self, command: bytes, payload: bytes = b"") -> None:
        if self._is_closed:
            raise Disconnected
        self._connection.send(Packet(command, self.local_id, self._remote_id, payload))
