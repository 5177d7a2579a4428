"""A server that answers chats as a test says, word for word, and notes what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class StubAnswer:
    """What a request gets: a stream of `deltas`, or an error."""

    deltas: tuple[Mapping[str, str], ...] = ()
    usage: Mapping[str, Any] | None = None
    status: int = 200
    error: str = ""  # with a status of 200: an event in the middle of the stream
    is_cut: bool = False  # the connection ends without a last word
    gate: threading.Event | None = None  # the stream waits for it after the first delta


def says(*pieces: str, **fields: Any) -> StubAnswer:
    """An answer whose text comes in these pieces, each counted as a token."""
    usage = {"prompt_tokens": 7, "completion_tokens": len(pieces)}
    return StubAnswer(tuple({"content": piece} for piece in pieces), usage, **fields)


@dataclass(frozen=True)
class File:
    """Anything else it serves."""

    content: bytes
    headers: Mapping[str, str]


@dataclass
class ChatStub:
    """Its state; tests change `answer` as they go on."""

    url: str = ""
    answer: StubAnswer = field(default_factory=lambda: says("Hello", " there."))
    queue: list[StubAnswer] = field(default_factory=list)  # given first, each once
    models: tuple[str, ...] = ("small", "large")
    key: str | None = None
    files: Mapping[str, File] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    num_running: int = 0
    max_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, headers: Mapping[str, str], body: dict[str, Any]) -> None:
        """Remember a request."""
        with self.lock:
            self.headers.append(headers)
            self.bodies.append(body)
            self.num_running += 1
            self.max_running = max(self.max_running, self.num_running)

    def next_answer(self) -> StubAnswer:
        """What the next request gets."""
        with self.lock:
            return self.queue.pop(0) if self.queue else self.answer

    def done(self) -> None:
        """Count a request as answered."""
        with self.lock:
            self.num_running -= 1


@contextmanager
def chat_stub(files: Mapping[str, File] | None = None) -> Iterator[ChatStub]:
    """Run one for the time of a block, on a port that is free."""
    stub = ChatStub(files=files or {})
    handler = type("Handler", (_Handler,), {"stub": stub})
    with _Server(("127.0.0.1", 0), handler) as server:
        stub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # browsers keep connections open

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that leave in the middle are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: ChatStub

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if self._may_pass():
                self._send_json(200, {"data": [{"id": name} for name in self.stub.models]})
        elif file := self.stub.files.get(self.path):
            self._send(200, file.content, file.headers)
        else:
            self._send_json(404, {"error": {"message": f"there is nothing at {self.path}"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not self._may_pass():
            return
        self.stub.note(dict(self.headers), body)
        try:
            self._answer(self.stub.next_answer())
        finally:
            self.stub.done()

    def _may_pass(self) -> bool:
        key = self.stub.key
        if key is None or self.headers.get("authorization") == f"Bearer {key}":
            return True
        self._send_json(401, {"error": {"message": "a valid API key is needed"}})
        return False

    def _answer(self, answer: StubAnswer) -> None:
        if answer.status != 200:
            self._send_json(answer.status, {"error": {"message": answer.error}})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        with suppress(OSError):  # the client has left
            self._stream(answer)

    def _stream(self, answer: StubAnswer) -> None:
        self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for delta in answer.deltas:
            self._event({"choices": [{"index": 0, "delta": delta}]})
            if answer.gate is not None:
                answer.gate.wait(30)
        if answer.is_cut:
            self.close_connection = True
            return
        if answer.error:
            self._event({"error": {"message": answer.error}})
        else:
            self._event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            self._event({"choices": [], "usage": answer.usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, value: Any) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.flush()

    def _send_json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode(), {"content-type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
