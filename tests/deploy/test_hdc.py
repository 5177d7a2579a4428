"""HarmonyOS NEXT through hdc: only ever tried with the small imitation in fake_hdc.py."""

from __future__ import annotations

import re
import shlex
import socket
import sys
from pathlib import Path

import httpx
import pytest

from command_line import status_of
from deploy import fake_hdc
from deploy.fake_phone.phone import FakePhone
from deploy.stand_in import write_bundle
from powerserve.core.errors import DeviceError
from powerserve.deploy import adb, hdc
from powerserve.deploy.device import Device
from powerserve.deploy.selection import choose_device
from tiny_models import TinyModel, write_tiny_model

PROMPT = 'it\'s "$HOME" `id` 😀\n'
ECHO = """#!/system/bin/sh
while [ $# -gt 1 ]; do [ "$1" = -f ] && cat "$2"; shift; done
echo statistics >&2
exit 5
"""


@pytest.fixture
def harmony(phone: FakePhone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The phone as hdc shows it; PowerServe finds no adb."""
    program = tmp_path / "programs" / "hdc"
    program.parent.mkdir()
    python, script = shlex.quote(sys.executable), shlex.quote(str(fake_hdc.__file__))
    program.write_text(f'#!/bin/sh\nexec {python} -IS {script} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("FAKE_HDC_SERIAL", phone.serial)
    monkeypatch.setattr(hdc, "find_hdc", lambda: str(program))
    monkeypatch.setattr(adb, "find_adb", lambda: None)
    return choose_device()


def test_statuses_words_and_properties(harmony: Device) -> None:
    assert harmony.run(["printf", "%s|", "it's", "a b", "$x"]).output == "it's|a b|$x|"
    assert harmony.run_script("echo out; echo err >&2; exit 7").status == 7
    assert harmony.property("const.product.model") == ""  # the fake has no `param`
    assert harmony.name() == harmony.serial


def test_a_prompt_is_answered_and_the_status_comes_back(
    harmony: Device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = write_tiny_model(tmp_path / "a model.gguf")
    bundle = write_bundle(tmp_path / "bundle.tar.gz", ECHO)
    assert status_of("deploy", "run", tiny, "--bundle", bundle, "-p", PROMPT) == 5
    printed = capfd.readouterr()
    assert printed.out == PROMPT
    assert printed.err.endswith("statistics\n")


def test_a_server_is_started_and_stopped(
    harmony: Device, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(context_length=256))
    assert status_of("deploy", "serve", tiny, "--bundle", bundle, "--port", "0") == 0
    url = re.search(r"http://\S+", capfd.readouterr().out)
    assert url
    assert httpx.get(f"{url[0]}/health").status_code == 200
    assert status_of("deploy", "clean") == 0
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url[0]}/health")


def test_a_taken_port(harmony: Device) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeviceError, match=rf"port {port} of this machine is taken"):
            harmony.forward(port, 1)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("Unauthorized", "does not trust this computer"),
        ("Offline", "is offline: reconnect it"),
        ("Strange", "is not ready: hdc calls its state 'Strange'"),
        ("", "is not ready"),
    ],
)
def test_devices_that_cannot_be_used(
    harmony: Device, monkeypatch: pytest.MonkeyPatch, state: str, sentence: str
) -> None:
    monkeypatch.setenv("FAKE_HDC_STATE", state or "-")
    with pytest.raises(DeviceError, match=sentence):
        choose_device()


def test_no_device(harmony: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HDC_SERIAL", "")
    with pytest.raises(DeviceError, match="no device is attached"):
        choose_device()


def test_a_failure_that_exits_with_0_is_noticed(
    harmony: Device, phone: FakePhone, tmp_path: Path
) -> None:
    phone.stop()
    (tmp_path / "file").write_text("x")
    with pytest.raises(DeviceError, match=r"connection to .* was lost"):
        harmony.push(tmp_path / "file", hdc.SCRIPT_FOLDER / "file")
    with pytest.raises(DeviceError, match=r"connection to .* was lost"):
        harmony.run(["true"])
