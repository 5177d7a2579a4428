"""`powerserve deploy serve`: a server on the phone for clients on this machine."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from command_line import status_of
from deploy.fake_phone.phone import FakePhone, adb, connect
from deploy.stand_in import write_bundle
from server_process import wait_until
from tiny_models import TinyModel, write_tiny_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel(context_length=256))


@pytest.fixture
def url(phone: FakePhone, tiny: Path, bundle: Path, capfd: Capture) -> Iterator[str]:
    """A server on the phone, as this machine reaches it."""
    assert serve(tiny, bundle) == 0
    printed = capfd.readouterr().out
    match = re.fullmatch(r"tiny on Fake 8 is served at (http://127\.0\.0\.1:\d+)\n", printed)
    assert match
    yield match[1]
    status_of("deploy", "stop")


def serve(model: Path, bundle: Path, *flags: str) -> int:
    return status_of("deploy", "serve", model, "--bundle", bundle, "--port", "0", *flags)


def status(capfd: Capture) -> dict[str, object]:
    capfd.readouterr()
    assert status_of("deploy", "status", "--json") == 0
    described: dict[str, object] = json.loads(capfd.readouterr().out)
    return described


def test_a_chat_streams_through_the_forward(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "it's “$HOME” 😀"}],
            max_tokens=12,
            stream=True,
        )
        texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len([text for text in texts if text]) > 1


def test_status_and_logs_tell_of_it(url: str, phone: FakePhone, capfd: Capture) -> None:
    described = status(capfd)
    assert described["server"] == {
        "model": "tiny",
        "port": int(url.rpartition(":")[2]),
        "device_port": described["server"]["device_port"],  # type: ignore[index]
    }
    assert list(described["models"]) == ["tiny"]  # type: ignore[call-overload]
    assert (described["serial"], described["name"]) == (phone.serial, "Fake 8")
    assert status_of("deploy", "status", "-s", phone.serial) == 0
    assert f"server    tiny at {url}" in capfd.readouterr().out
    assert status_of("deploy", "logs") == 0
    assert "powerserve is listening on" in capfd.readouterr().out


def test_stop_ends_it_and_the_forward(
    url: str, adb_variables: dict[str, str], capfd: Capture
) -> None:
    assert httpx.get(f"{url}/health").status_code == 200
    assert status_of("deploy", "stop") == 0
    assert capfd.readouterr().out.startswith("server    stopped on Fake 8")
    assert adb(adb_variables, "forward", "--list").strip() == ""
    assert status(capfd)["server"] is None
    assert status_of("deploy", "stop") == 0
    assert capfd.readouterr().out.startswith("server    not running on Fake 8")


def test_another_model_takes_its_place(
    url: str, tiny: Path, bundle: Path, tmp_path: Path, capfd: Capture
) -> None:
    other = write_tiny_model(tmp_path / "other.gguf", TinyModel(seed=1))
    assert serve(other, bundle) == 0
    assert "stopped the server that ran on" in capfd.readouterr().err
    described = status(capfd)
    assert described["server"]["model"] == "other"  # type: ignore[index]
    assert sorted(described["models"]) == ["other", "tiny"]  # type: ignore[call-overload]


def test_status_brings_the_forward_back(
    url: str, phone: FakePhone, adb_variables: dict[str, str], capfd: Capture
) -> None:
    adb(adb_variables, "-s", phone.serial, "forward", "--remove-all")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    connect(adb_variables, phone)
    assert status(capfd)["server"] is not None
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_server_that_was_killed_is_not_running(
    url: str, phone: FakePhone, capfd: Capture, adb_variables: dict[str, str]
) -> None:
    pid = (phone.data / "local/tmp/powerserve/server/pid").read_text().strip()
    adb(adb_variables, "-s", phone.serial, "shell", f"kill -9 {pid}")
    wait_until(lambda: status(capfd)["server"] is None)


def test_a_server_that_cannot_start_says_why(
    phone: FakePhone, tiny: Path, bundle: Path, capfd: Capture
) -> None:
    assert serve(tiny, bundle, "--flags=--parallel 0") == 2
    told = capfd.readouterr().err.splitlines()[-1]
    assert re.search(r"the server on 127.* did not start: .*--parallel", told)
    silent = write_bundle(bundle.with_name("silent.tar.gz"), "exit 3\n")
    assert serve(tiny, silent) == 2
    assert "did not start: it wrote nothing" in capfd.readouterr().err
    assert not (phone.data / "local/tmp/powerserve/server/pid").exists()


def test_a_taken_port_is_told_and_no_server_stays(
    phone: FakePhone, tiny: Path, bundle: Path, capfd: Capture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ("deploy", "serve", tiny, "--bundle", bundle, "--port", port)
        assert status_of(*command) == 2
    assert f"port {port} of this machine is taken: choose another" in capfd.readouterr().err
    assert status(capfd)["server"] is None


def test_clean_deletes_everything(url: str, phone: FakePhone, capfd: Capture) -> None:
    assert status_of("deploy", "clean", "--device", phone.serial) == 0
    assert capfd.readouterr().out.startswith("deleted ")
    assert list((phone.data / "local/tmp").iterdir()) == []
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/health")
    described = status(capfd)
    assert (described["versions"], described["models"], described["server"]) == ({}, {}, None)
