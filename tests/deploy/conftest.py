"""Phones that are none, each test with an adb server and caches of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.fake_phone.phone import (
    FakePhone,
    PhoneSettings,
    PlugIn,
    adb_server,
    connect,
    require_phone_tools,
)
from deploy.stand_in import write_bundle
from powerserve.deploy.device import Device
from powerserve.deploy.selection import choose_device


@pytest.fixture
def adb_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What leads to this test's own adb server; set for the test."""
    require_phone_tools()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("ANDROID_SERIAL", "QNN_SDK_ROOT"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "adb home"
    home.mkdir()
    with adb_server(home) as variables:
        monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", variables["ANDROID_ADB_SERVER_PORT"])
        yield variables


@pytest.fixture
def plug_in(adb_variables: dict[str, str], tmp_path: Path) -> Iterator[PlugIn]:
    """Attach a phone that behaves as the settings say; all are switched off at the end."""
    phones: list[FakePhone] = []

    def attach(settings: PhoneSettings | None = None) -> FakePhone:
        phone = FakePhone(tmp_path / f"phone {len(phones)}", settings or PhoneSettings())
        phones.append(phone)
        connect(adb_variables, phone)
        return phone

    yield attach
    for phone in phones:
        phone.stop()


@pytest.fixture
def phone(plug_in: PlugIn) -> FakePhone:
    """An ordinary phone."""
    return plug_in()


@pytest.fixture
def device(phone: FakePhone) -> Device:
    """The way to it."""
    return choose_device()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that runs this machine's PowerServe on the phone."""
    return write_bundle(tmp_path / "bundle.tar.gz")
