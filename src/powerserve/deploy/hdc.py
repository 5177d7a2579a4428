"""HarmonyOS NEXT devices, through the `hdc` program of the OpenHarmony SDK. Experimental.

hdc resembles adb, with differences that matter here: its exit status says little (failures begin
with `[Fail]` and may exit 0), a command's exit status is not handed on, both output streams arrive
as one, and words with blanks are requoted. So every script is sent as a file and run by name.
Source: https://gitcode.com/openharmony/docs (application-dev/dfx/hdc.md).
"""

from __future__ import annotations

import re
import secrets
import socket
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

SCRIPT_FOLDER = PurePosixPath("/data/local/tmp")
_FOLDERS = (("OHOS_SDK_HOME", "toolchains"), ("DEVECO_SDK_HOME", "default/openharmony/toolchains"))
_PROBLEMS = {
    "Connected": "",
    "Unauthorized": "does not trust this computer: unlock it and allow USB debugging",
    "Offline": "is offline: reconnect it, and see that it is awake",
}
_UNUSED_PORT_STATE = "Ready"  # how serial ports without a device are listed


def find_hdc() -> str | None:
    """The hdc program, if there is one."""
    return programs.find_program("hdc", _FOLDERS)


def attached_devices(hdc: str) -> list[Attached]:
    """All devices that hdc knows of. Raises DeviceError."""
    done = programs.call([hdc, "list", "targets", "-v"], timeout_s=COMMAND_TIMEOUT_S)
    if done.returncode != 0 or "[Fail]" in done.stdout:
        raise DeviceError(f"hdc does not work: {_reason(done.stdout or done.stderr)}")
    rows = [line.split() for line in done.stdout.splitlines()]
    return [
        Attached(row[0], _problem(row[2]))
        for row in rows
        if len(row) >= 3 and row[2] != _UNUSED_PORT_STATE
    ]


class HdcDevice(Device):
    """A HarmonyOS NEXT or OpenHarmony device."""

    abi_property = "const.product.cpu.abilist"
    bundle_target = "harmonyos"
    separates_errors = False

    def __init__(self, hdc: str, serial: str) -> None:
        self.serial = serial
        self._hdc = hdc

    def name(self) -> str:
        """The product's name."""
        return self.property("const.product.model") or self.serial

    def property(self, key: str) -> str:
        """What `param get` says."""
        reply = self.run(["param", "get", key])
        output = reply.output.strip()
        return "" if reply.status != 0 or "fail" in output.lower() else output

    def push(self, source: Path, target: PurePosixPath) -> None:
        """Send a file."""
        output = self._call(["file", "send", str(source), str(target)], TRANSFER_TIMEOUT_S)
        if "FileTransfer finish" not in output:
            raise self._error(output)

    def run_script(self, script: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Reply:
        """Send a script and run it; it deletes itself."""
        file = SCRIPT_FOLDER / f".powerserve-{secrets.token_hex(4)}.sh"
        self.push_bytes(f"rm -f {file}\n{with_status(script)}\n".encode(), file)
        output = self._call(["shell", "sh", str(file)], timeout_s)
        reply = parse_reply(output.replace("\r\n", "\n"))
        if reply is None:
            raise self._error(output)
        return reply

    def stream(self, script: PurePosixPath) -> None:
        """Run a script."""
        programs.stream([self._hdc, "-t", self.serial, "shell", "sh", str(script)])

    def forward(self, port: int, device_port: int) -> int:
        """Forward a TCP port."""
        chosen = port or _free_port()
        output = self._call(["fport", f"tcp:{chosen}", f"tcp:{device_port}"])
        if "listen failed" in output:
            raise taken_port(chosen)
        if "OK" not in output:
            raise self._error(output)
        return chosen

    def remove_forward(self, port: int) -> None:
        """hdc wants both ends, so they are looked up first."""
        listing = self._call(["fport", "ls"])
        for local, remote in re.findall(r"(tcp:\d+)\s+(tcp:\d+)", listing):
            if local == f"tcp:{port}":
                self._call(["fport", "rm", local, remote])

    def _call(self, words: list[str], timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        done = programs.call([self._hdc, "-t", self.serial, *words], timeout_s=timeout_s)
        return done.stdout + done.stderr

    def _error(self, output: str) -> DeviceError:
        if "no space left" in output.lower():
            return self.failure(output)
        return self.lost(_reason(output))


def _problem(state: str) -> str:
    return _PROBLEMS.get(state, f"is not ready: hdc calls its state {state!r}")


def _reason(output: str) -> str:
    lines = output.strip().splitlines()
    failures = [line for line in lines if line.startswith("[Fail]")]
    chosen = failures or lines[-1:]
    return chosen[0].removeprefix("[Fail]").strip() if chosen else "no reason given"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
