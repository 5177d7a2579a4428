"""A small Hugging Face hub on this machine, for the real huggingface_hub client (HF_ENDPOINT).

Speaks what the client needs of the hub's HTTP API: the model-info call with files' metadata, and
`resolve` with HEAD, ETag, X-Repo-Commit and ranges. It can refuse, cut and lie on request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds and how it misbehaves. `requests` are `METHOD path range` lines."""

    repos: dict[str, dict[str, bytes]]
    token: str | None = None  # None: public
    gated: bool = False
    cut_after_bytes: list[int] = field(default_factory=list)  # one per GET of a file
    corrupt: bool = False
    redirect: bool = False  # files come from a "CDN", as on the real hub
    status: int | None = None  # answer everything with this
    hold_after_bytes: int | None = None  # of every GET of a file, until `go_on` is set
    go_on: Event = field(default_factory=Event)
    requests: list[str] = field(default_factory=list)
    authorizations: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` at `hub.url` on a free port of the loopback interface."""

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path} {self.headers.get('Range') or ''}"
        self.hub.requests.append(line.strip())
        self.hub.authorizations.append((path, self.headers.get("Authorization")))
        if self.hub.status is not None:
            self._refuse(self.hub.status)
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)", path):
            self._send_file(self.hub.repos[match[1]][match[2]])
        elif not self._is_allowed():
            self._refuse(401, "GatedRepo" if self.hub.gated else "RepoNotFound")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404)

    def _is_allowed(self) -> bool:
        wanted = self.hub.token
        return wanted is None or self.headers.get("Authorization") == f"Bearer {wanted}"

    def _info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repos:
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            siblings = [_sibling(*item) for item in self.hub.repos[repo].items()]
            body = json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings, "tags": []})
            self._send(200, body.encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        data = self.hub.repos.get(repo, {}).get(name)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{_digest(data)}"', "X-Repo-Commit": COMMIT}
        if not self.hub.redirect:
            self._send_file(data, headers)
            return
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(data))}
        port = self.server.server_address[1]  # another name of this machine: another host
        location = f"http://localhost:{port}/cdn/{repo}/{name}"
        self._send(302, b"", headers | linked | {"Location": location})

    def _send_file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        headers = {"Accept-Ranges": "bytes"} | (headers or {})
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.hub.corrupt:
            data = bytes(len(data))
        self._send(status, data[start:], headers, is_file=self.command == "GET")

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], *, is_file: bool = False
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if is_file and self.hub.cut_after_bytes:
            self.wfile.write(body[: self.hub.cut_after_bytes.pop(0)])
            self.wfile.flush()
            self.close_connection = True
        elif is_file and self.hub.hold_after_bytes is not None:
            self._send_with_pause(body, self.hub.hold_after_bytes)
        else:
            self.wfile.write(body)

    def _send_with_pause(self, body: bytes, num_before: int) -> None:
        self.wfile.write(body[:num_before])
        self.wfile.flush()
        self.hub.go_on.wait()
        with suppress(ConnectionError):  # the client may have gone meanwhile
            self.wfile.write(body[num_before:])

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code} if code else {})


def _sibling(name: str, data: bytes) -> dict[str, object]:
    described: dict[str, object] = {"rfilename": name, "size": len(data)}
    if name.endswith(".gguf"):
        described["lfs"] = {"sha256": _digest(data), "size": len(data), "pointerSize": 130}
    return described


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
