"""Which device is meant, and what is said when there is none that can be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.fake_phone.phone import PhoneSettings, PlugIn
from powerserve.core.errors import DeviceError
from powerserve.deploy.selection import choose_device


def test_the_only_device_is_taken(plug_in: PlugIn) -> None:
    phone = plug_in()
    assert choose_device().serial == phone.serial


def test_of_two_devices_one_must_be_named(plug_in: PlugIn, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = plug_in(), plug_in()
    with pytest.raises(DeviceError, match=r"several devices are attached \(127.*, 127.*--device"):
        choose_device()
    assert choose_device(second.serial).serial == second.serial
    monkeypatch.setenv("ANDROID_SERIAL", first.serial)
    assert choose_device().serial == first.serial
    assert choose_device(second.serial).serial == second.serial


def test_no_device(adb_variables: dict[str, str]) -> None:
    with pytest.raises(DeviceError, match=r"no device is attached: connect one by USB"):
        choose_device()
    with pytest.raises(DeviceError, match=r"there is no device 0815: connect one"):
        choose_device("0815")


def test_an_unauthorised_device(plug_in: PlugIn) -> None:
    phone = plug_in(PhoneSettings(is_authorized=False))
    with pytest.raises(DeviceError, match=rf"{phone.serial} does not trust this computer: unlock"):
        choose_device()


def test_a_device_that_went_to_sleep(plug_in: PlugIn) -> None:
    plug_in().stop()
    with pytest.raises(DeviceError, match=r"is offline: reconnect it|no device is attached"):
        choose_device()


def test_without_adb_and_hdc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("ANDROID_HOME", "ANDROID_SDK_ROOT", "OHOS_SDK_HOME", "DEVECO_SDK_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeviceError, match=r"neither adb nor hdc is installed: get adb from"):
        choose_device()


def test_adb_is_found_below_the_sdk(
    adb_variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "sdk/platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text("#!/bin/sh\necho 'List of devices attached'\necho 'X1\tdevice'\n")
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert choose_device().serial == "X1"
