"""Who is let in, and what happens to bodies that are not as they should be."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from command_line import program
from server_process import ServerProcess, serving
from tiny_models import write_tiny_model

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that wants a key, is asked for pages of one origin, and takes small bodies only."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = folder / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    flags = ("--api-key-file", keys, "--cors-origin", "https://app.example", "--max-body-mib", "1")
    with serving("-m", write_tiny_model(folder / "tiny.gguf"), *flags) as process:
        yield process


@pytest.fixture
def stranger(guarded: ServerProcess) -> Iterator[httpx.Client]:
    with guarded.client() as client:
        yield client


@pytest.fixture
def friend(guarded: ServerProcess) -> Iterator[httpx.Client]:
    with guarded.client(headers={"authorization": "Bearer second-key"}) as client:
        yield client


def test_a_key_is_needed(stranger: httpx.Client) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "first-key "[:-2]}):
        reply = stranger.post(CHAT, json=HELLO, headers=headers)
        assert reply.status_code == 401
        assert reply.json()["error"]["code"] == "invalid_api_key"
        assert reply.headers["www-authenticate"] == "Bearer"
    assert stranger.get("/metrics").status_code == 401
    assert stranger.get("/nowhere").status_code == 401  # tells nothing about what exists
    assert stranger.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("path", "type_of_error"),
    [
        ("/v1/messages", lambda body: body["error"]["type"] == "authentication_error"),
        ("/v1/responses", lambda body: body["error"]["type"] == "authentication_error"),
        ("/api/chat", lambda body: "API key" in body["error"]),
        ("/api/pull", lambda body: "API key" in body["error"]),
    ],
)
def test_a_wrong_key_in_each_family_s_words(
    stranger: httpx.Client, path: str, type_of_error: Callable[[Any], bool]
) -> None:
    wrong = "first-kez"
    basic = base64.b64encode(b"first-key:").decode()
    for headers in (
        {"authorization": f"Bearer {wrong}"},
        {"authorization": f"Bearer {wrong}", "x-api-key": "first-key"},  # which one is meant?
        {"authorization": f"Basic {basic}"},
        {"authorization": "first-key"},
        {"x-api-key": f"first-key,{wrong}"},
        {"x-api-key": "FIRST-KEY"},
        {"cookie": "x-api-key=first-key"},
    ):
        reply = stranger.post(f"{path}?api_key=first-key", json=HELLO, headers=headers)
        assert reply.status_code == 401 and type_of_error(reply.json()), headers


def test_either_key_opens(stranger: httpx.Client) -> None:
    for headers in ({"authorization": "Bearer first-key"}, {"x-api-key": "second-key"}):
        assert stranger.post(CHAT, json=HELLO, headers=headers).status_code == 200


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny.gguf")
    done = program("serve", "-m", model, "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2
    assert b"API key" in done.stderr and b"--insecure" in done.stderr


def test_foreign_names_are_refused(friend: httpx.Client) -> None:
    for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", ""):
        reply = friend.get("/v1/models", headers={"host": host})
        assert reply.status_code == 403, host
    for host in ("localhost", "localhost:1234", "127.0.0.1", "[::1]:8080"):
        assert friend.get("/v1/models", headers={"host": host}).status_code == 200, host


def test_foreign_pages_are_refused(friend: httpx.Client) -> None:
    for origin in ("https://evil.example", "null", "http://localhost.evil.example", "http://["):
        reply = friend.post(CHAT, json=HELLO, headers={"origin": origin})
        assert reply.status_code == 403, origin
        assert "access-control-allow-origin" not in reply.headers


def test_pages_of_this_machine_and_those_asked_for_may_read(friend: httpx.Client) -> None:
    for origin in ("http://localhost:3000", "http://127.0.0.1", "https://app.example"):
        reply = friend.post(CHAT, json=HELLO, headers={"origin": origin})
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == origin


def test_preflights_need_no_key(stranger: httpx.Client) -> None:
    headers = {
        "origin": "https://app.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type",
    }
    reply = stranger.options(CHAT, headers=headers)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-headers"] == "authorization, content-type"
    assert stranger.options(CHAT, headers=headers | {"origin": "https://x"}).status_code == 403


def test_only_json_is_read(friend: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        reply = friend.post(CHAT, content=b"{}", headers={"content-type": kind})
        assert reply.status_code == 415, kind
        assert "application/json" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b"[" * 100_000, b'{"n": 1e999}'],
)
def test_broken_bodies_are_errors_of_the_client(friend: httpx.Client, body: bytes) -> None:
    reply = friend.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_the_field_at_fault_is_named(friend: httpx.Client) -> None:
    error = friend.post(CHAT, json=HELLO | {"max_tokens": "many"}).json()["error"]
    assert error["param"] == "max_tokens" and "expected `int" in error["message"]


def test_large_bodies_are_refused(friend: httpx.Client) -> None:
    large = b" " * (1 << 20) + b"{}"
    json_type = {"content-type": "application/json"}
    assert friend.post(CHAT, content=large, headers=json_type).status_code == 413
    pieces = (large[start : start + 65536] for start in range(0, len(large), 65536))
    assert friend.post(CHAT, content=pieces, headers=json_type).status_code == 413


def test_large_headers_are_refused(guarded: ServerProcess) -> None:
    host, port = guarded.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000)
        assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))


def test_what_does_not_exist(friend: httpx.Client) -> None:
    assert friend.get("/v2/models").json()["error"]["type"] == "not_found_error"
    reply = friend.get(CHAT)
    assert reply.status_code == 405 and "error" in reply.json()


def test_templates_of_users_are_not_programs(friend: httpx.Client) -> None:
    """What a user writes is text, even if it looks like a template."""
    content = "{{ 7 * 191 }} {% for x in range(9999999) %}{% endfor %}"
    message = {"role": "user", "content": content}
    reply = friend.post(CHAT, json={"messages": [message], "max_tokens": 1})
    assert reply.status_code == 200
    assert reply.json()["usage"]["prompt_tokens"] > len(content) / 3
