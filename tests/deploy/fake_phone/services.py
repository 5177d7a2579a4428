"""What streams of the fake daemon lead to: shells, file transfer, TCP ports.

Sources: SERVICES.TXT, SYNC.TXT and shell_protocol.h of adb in the Android Open Source Project.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from protocol import Disconnected, Stream

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


@dataclass(frozen=True)
class Services:
    """The services of a phone whose file system begins at `root`.

    `shell` is what a command line is given to. After `count_pushed` was told the size of a piece of
    a pushed file, that piece is written.
    """

    root: Path
    shell: Sequence[str]
    count_pushed: Callable[[int], None]

    def serve(self, stream: Stream) -> None:
        """Serve one stream to its end."""
        kind, _, argument = stream.service.partition(":")
        services = {"shell": self._shell, "sync": self._sync, "tcp": self._tcp}
        service = services.get(kind.split(",")[0])
        with suppress(Disconnected, OSError):
            if service is not None:
                stream.accept()
                service(stream, argument)
        with suppress(Disconnected, OSError):
            stream.close()

    def _shell(self, stream: Stream, command: str) -> None:
        frame = _framed if ",v2" in stream.service else _unframed
        process = subprocess.Popen(
            [*self.shell, command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if frame is _framed else subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=_watch, args=(stream, process), daemon=True).start()
        pumps = [
            threading.Thread(target=_pump, args=(stream, pipe, kind, frame), daemon=True)
            for pipe, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
            if pipe is not None
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        status = process.wait()
        if frame is _framed:
            stream.write(_framed(EXIT, bytes([status if status >= 0 else 128 - status])))

    def _tcp(self, stream: Stream, port: str) -> None:
        with socket.create_connection(("127.0.0.1", int(port))) as peer:
            threading.Thread(target=_copy_to_stream, args=(peer, stream), daemon=True).start()
            with suppress(Disconnected):
                while True:
                    peer.sendall(stream.read_some())

    def _sync(self, stream: Stream, _argument: str) -> None:
        while True:
            command, size = struct.unpack("<4sI", stream.read(8))
            path = stream.read(size).decode()
            if command == b"QUIT":
                return
            {b"STAT": self._stat, b"SEND": self._send, b"RECV": self._receive}[command](
                stream, path
            )

    def _host_path(self, path: str) -> Path:
        return Path(f"{self.root}{os.path.normpath(f'/{path}')}")

    def _stat(self, stream: Stream, path: str) -> None:
        try:
            found = os.stat(self._host_path(path))
            fields = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            fields = (0, 0, 0)
        stream.write(struct.pack("<4s3I", b"STAT", *fields))

    def _send(self, stream: Stream, path_and_mode: str) -> None:
        path, _, mode = path_and_mode.rpartition(",")
        target = self._host_path(path)
        problem = ""
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                self._take(stream, file)
            target.chmod(stat.S_IMODE(int(mode)))
        except OSError as error:
            problem = f"couldn't create file: {error.strerror}"
        if problem:  # the rest of the file is still under way
            _skip(stream)
            answer = problem.encode()
            stream.write(struct.pack("<4sI", b"FAIL", len(answer)) + answer)
        else:
            stream.write(struct.pack("<4sI", b"OKAY", 0))

    def _take(self, stream: Stream, file: BinaryIO) -> None:
        while True:
            kind, size = struct.unpack("<4sI", stream.read(8))
            if kind == b"DONE":
                return
            self.count_pushed(size)
            file.write(stream.read(size))
            file.flush()  # a full disk shows at once

    def _receive(self, stream: Stream, path: str) -> None:
        try:
            data = self._host_path(path).read_bytes()
        except OSError as error:
            answer = (error.strerror or "").encode()
            stream.write(struct.pack("<4sI", b"FAIL", len(answer)) + answer)
            return
        for start in range(0, len(data), 1 << 16):
            piece = data[start : start + (1 << 16)]
            stream.write(struct.pack("<4sI", b"DATA", len(piece)) + piece)
        stream.write(struct.pack("<4sI", b"DONE", 0))


def _framed(kind: int, data: bytes) -> bytes:
    return struct.pack("<BI", kind, len(data)) + data


def _unframed(kind: int, data: bytes) -> bytes:
    return data


def _pump(stream: Stream, pipe: BinaryIO, kind: int, frame: Callable[[int, bytes], bytes]) -> None:
    with suppress(Disconnected, OSError):
        while data := os.read(pipe.fileno(), 1 << 15):
            stream.write(frame(kind, data))


def _watch(stream: Stream, process: subprocess.Popen[bytes]) -> None:
    """Throw away what comes for standard input; when the stream is gone, so is the shell."""
    assert process.stdin is not None
    process.stdin.close()
    with suppress(Disconnected):
        while True:
            stream.read_some()
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGHUP)  # as adbd does, to the shell alone


def _copy_to_stream(peer: socket.socket, stream: Stream) -> None:
    with suppress(Disconnected, OSError):
        while data := peer.recv(1 << 16):
            stream.write(data)
        stream.close()


def _skip(stream: Stream) -> None:
    while True:
        kind, size = struct.unpack("<4sI", stream.read(8))
        if kind == b"DONE":
            return
        stream.read(size)
