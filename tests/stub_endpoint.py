"""A server that answers requests for chats and completions as a test wants it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]
Reply = tuple[int, Any]  # status, and JSON or the bytes themselves


@dataclass
class StubEndpoint:
    """Where it is, and what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def stub_endpoint(answer: Callable[[Request], Reply]) -> Iterator[StubEndpoint]:
    """Serve on a free port for the time of a block."""
    stub = StubEndpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            stub.requests.append(json.loads(self.rfile.read(length)))
            stub.paths.append(self.path)
            stub.keys.append(self.headers["Authorization"])
            status, content = answer(stub.requests[-1])
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chat_reply(text: str) -> Reply:
    """An answer to a chat."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def error_reply(status: int, message: str) -> Reply:
    """An error as OpenAI's API has it."""
    return status, {"error": {"message": message}}
