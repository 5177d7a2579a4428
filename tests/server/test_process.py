"""The process: its flags, its ready line, and how it ends."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from command_line import program
from server_process import ServerProcess, serving, wait_until
from tiny_models import TinyModel, write_tiny_model

CHAT = "/v1/chat/completions"
LONG = {
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": 800,
    "ignore_eos": True,
    "stream": True,
}

ENDLESS = LONG | {"max_tokens": None}
CONTEXT = ("-c", "60000")  # minutes of work, if it is not ended before


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One that takes a moment for the long answer."""
    return write_tiny_model(
        tmp_path / "tiny.gguf", TinyModel(num_layers=8, embed_dim=128, context_length=100_000)
    )


def test_running_answers_finish_and_new_requests_get_503(model: Path) -> None:
    server = ServerProcess("-m", model, "--shutdown-timeout", "60")
    with (
        server.client() as http,
        server.client() as other,
        http.stream("POST", CHAT, json=LONG) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.send(signal.SIGTERM)
        wait_until(lambda: other.get("/health").status_code == 503)
        refused = other.post(CHAT, json=LONG)
        assert refused.status_code == 503 and "stopping" in refused.json()["error"]["message"]
        *_, last, done = [line for line in lines if line]
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    status, errors = server.stop()
    assert status == 0 and "Traceback" not in errors, errors


def test_answers_that_take_too_long_are_ended(model: Path) -> None:
    server = ServerProcess("-m", model, *CONTEXT, "--shutdown-timeout", "0.2")
    with (
        server.client() as http,
        http.stream("POST", CHAT, json=ENDLESS) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.send(signal.SIGTERM)
        try:
            frames = [line for line in lines if line]
            assert "stopping" in frames[-1]
        except httpx.RemoteProtocolError:
            pytest.fail("the stream broke off without a word")
    status, errors = server.stop()
    assert status == 0 and "Traceback" not in errors, errors


def test_ctrl_c_twice_ends_at_once(model: Path) -> None:
    server = ServerProcess("-m", model, *CONTEXT, "--shutdown-timeout", "600")
    with (
        server.client() as http,
        http.stream("POST", CHAT, json=ENDLESS) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        server.send(signal.SIGINT)
        with server.client() as other:
            wait_until(lambda: other.get("/health").status_code == 503)
        server.send(signal.SIGINT)
        assert server.process.wait(timeout=20) == 0
    server.stop()


def test_a_port_that_is_taken(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = program("serve", "-m", model, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert b"cannot listen on 127.0.0.1" in done.stderr and done.stdout == b""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-m", "no-such-model"), "no-such-model"),
        (("-d", "no-such-folder"), "no-such-folder"),
        (("--host", "no.such.host.invalid"), "API key"),
        (("--api-key-file", "missing"), "missing"),
        (("--ssl-cert-file", "x.pem"), "belong together"),
        (("--ssl-cert-file", "/no.pem", "--ssl-key-file", "/no.pem"), "certificate"),
        (("--timeout", "0"), "seconds"),
        (("--parallel", "0"), "at least 1"),
    ],
)
def test_bad_flags_are_one_sentence(flags: tuple[str, ...], words: str) -> None:
    done = program("serve", *flags, "--port", "0")
    assert done.returncode == 2
    assert words in done.stderr.decode() and done.stderr.count(b"\n") == 1


def test_https(model: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    new = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
    names = ("-subj", "/CN=localhost", "-keyout", key, "-out", certificate)
    subprocess.run([*new, "-nodes", *names], check=True, capture_output=True)
    with serving("-m", model, "--ssl-cert-file", certificate, "--ssl-key-file", key) as process:
        assert process.url.startswith("https://")
        with process.client(verify=False) as http:
            assert http.get("/health").json() == {"status": "ok"}
