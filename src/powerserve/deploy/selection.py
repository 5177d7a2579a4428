"""Which device is meant: the one that is attached, or the one that is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from powerserve.core.errors import DeviceError
from powerserve.deploy import adb, hdc
from powerserve.deploy.device import Attached, Device

SERIAL_VARIABLE = "ANDROID_SERIAL"  # adb's own


@dataclass(frozen=True, slots=True)
class _Candidate:
    attached: Attached
    connect: Callable[[], Device]


def choose_device(serial: str | None = None) -> Device:
    """The device called `serial`, or the only one there is.

    Without `serial`, ANDROID_SERIAL counts, as it does for adb. Raises DeviceError if there is
    none, more than one to choose from, or one that cannot be used.
    """
    candidates = _candidates()
    wanted = serial or os.environ.get(SERIAL_VARIABLE)
    if wanted:
        candidates = [each for each in candidates if each.attached.serial == wanted]
        if not candidates:
            raise DeviceError(f"there is no device {wanted}: {_HOW_TO_ATTACH}")
    if not candidates:
        raise DeviceError(f"no device is attached: {_HOW_TO_ATTACH}")
    if len(candidates) > 1:
        serials = ", ".join(each.attached.serial for each in candidates)
        raise DeviceError(f"several devices are attached ({serials}): choose one with --device")
    attached = candidates[0].attached
    if attached.problem:
        raise DeviceError(f"{attached.serial} {attached.problem}")
    return candidates[0].connect()


_HOW_TO_ATTACH = (
    "connect one by USB with debugging allowed in its developer options, and see that "
    "`adb devices` (HarmonyOS: `hdc list targets`) lists it"
)


def _candidates() -> list[_Candidate]:
    adb_program, hdc_program = adb.find_adb(), hdc.find_hdc()
    if adb_program is None and hdc_program is None:
        raise DeviceError(
            "neither adb nor hdc is installed: get adb from your system (`sudo apt-get install -y "
            "adb`) or Android's platform tools, hdc from the OpenHarmony SDK"
        )
    found = []
    if adb_program is not None:
        found += [_on_adb(adb_program, each) for each in adb.attached_devices(adb_program)]
    if hdc_program is not None:
        found += [_on_hdc(hdc_program, each) for each in hdc.attached_devices(hdc_program)]
    return found


def _on_adb(program: str, attached: Attached) -> _Candidate:
    return _Candidate(attached, lambda: adb.AdbDevice(program, attached.serial))


def _on_hdc(program: str, attached: Attached) -> _Candidate:
    return _Candidate(attached, lambda: hdc.HdcDevice(program, attached.serial))
