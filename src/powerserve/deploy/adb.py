"""Android devices, through the `adb` program (https://developer.android.com/tools/adb)."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path, PurePosixPath

from powerserve.core.errors import DeviceError
from powerserve.deploy import programs
from powerserve.deploy.device import (
    COMMAND_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    Attached,
    Device,
    Reply,
    parse_reply,
    taken_port,
    with_status,
)

_FOLDERS = (("ANDROID_HOME", "platform-tools"), ("ANDROID_SDK_ROOT", "platform-tools"))
_PROBLEMS = {
    "device": "",
    "unauthorized": "does not trust this computer: unlock it and allow USB debugging",
    "offline": "is offline: reconnect it, and see that it is awake",
    "no permissions": "may not be used by this user: see https://developer.android.com/tools/device",
    "recovery": "is in recovery mode: restart it",
    "sideload": "is in sideload mode: restart it",
    "bootloader": "is in its boot loader: restart it",
}
_LINE = re.compile(r"(?P<serial>\S+)\s+(?P<state>no permissions|\S+)")


def find_adb() -> str | None:
    """The adb program, if there is one."""
    return programs.find_program("adb", _FOLDERS)


def attached_devices(adb: str) -> list[Attached]:
    """All devices that adb knows of. Raises DeviceError."""
    done = programs.call([adb, "devices"], timeout_s=COMMAND_TIMEOUT_S)
    if done.returncode != 0:
        raise DeviceError(f"adb does not work: {_last_line(done)}")
    _, _, listing = done.stdout.partition("List of devices attached")
    lines = filter(None, (_LINE.match(line) for line in listing.splitlines()))
    return [Attached(line["serial"], _problem(line["state"])) for line in lines]


class AdbDevice(Device):
    """An Android device that is attached by USB or network."""

    abi_property = "ro.product.cpu.abi"
    bundle_target = "android-glibc"
    separates_errors = True

    def __init__(self, adb: str, serial: str) -> None:
        self.serial = serial
        self._adb = adb

    def name(self) -> str:
        """Such as `Pixel 8`."""
        return self.property("ro.product.model") or self.serial

    def property(self, key: str) -> str:
        """What getprop says."""
        reply = self.run(["getprop", key])
        return reply.output.strip() if reply.status == 0 else ""

    def push(self, source: Path, target: PurePosixPath) -> None:
        """Send a file by adb's own protocol."""
        command = self._command("push", str(source), str(target))
        done = programs.call(command, timeout_s=TRANSFER_TIMEOUT_S)
        if done.returncode != 0:
            raise self._error(done)

    def run_script(self, script: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Reply:
        """Run a piece of script by the device's shell."""
        command = self._command("shell", with_status(script))
        done = programs.call(command, timeout_s=timeout_s)
        reply = parse_reply(done.stdout.replace("\r\n", "\n"))
        if reply is None:
            raise self._error(done)
        return reply

    def stream(self, script: PurePosixPath) -> None:
        """Run a script; adb sends it SIGHUP if we end before it does."""
        programs.stream(self._command("shell", f"exec sh {shlex.quote(str(script))}"))

    def forward(self, port: int, device_port: int) -> int:
        """Forward a TCP port of the loopback interface."""
        command = self._command("forward", f"tcp:{port}", f"tcp:{device_port}")
        done = programs.call(command, timeout_s=COMMAND_TIMEOUT_S)
        if done.returncode != 0 and "bind" in done.stderr:
            raise taken_port(port)
        if done.returncode != 0:
            raise self._error(done)
        return port or int(done.stdout)

    def remove_forward(self, port: int) -> None:
        """adb complains if there is none, which is no harm."""
        command = self._command("forward", "--remove", f"tcp:{port}")
        programs.call(command, timeout_s=COMMAND_TIMEOUT_S)

    def _command(self, *words: str) -> list[str]:
        return [self._adb, "-s", self.serial, *words]

    def _error(self, done: subprocess.CompletedProcess[str]) -> DeviceError:
        """What adb's complaint means: it has no exit statuses of its own."""
        text = done.stderr + done.stdout
        if "no space left" in text.lower():
            return self.failure(text)
        for state, problem in _PROBLEMS.items():
            if problem and state in text:
                return DeviceError(f"{self.serial} {problem}")
        return self.lost(_last_line(done))


def _problem(state: str) -> str:
    return _PROBLEMS.get(state, f"is not ready: adb calls its state {state!r}")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1].removeprefix("adb: ").removeprefix("error: ") if lines else "no reason given"
