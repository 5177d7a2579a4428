"""A device that is not this machine: what deployment needs of one, whatever carries it there.

Nothing that a user typed becomes part of a command line: prompts and arguments travel in files, and
the words of a command are quoted for the device's shell (POSIX: all is literal in single quotes).
"""

from __future__ import annotations

import re
import shlex
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from powerserve.core.errors import DeviceError

COMMAND_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 600.0  # for one file that is sent at once

_STATUS = re.compile(r"powerserve-status (\d+)\s*\Z")


@dataclass(frozen=True, slots=True)
class Attached:
    """A device as its transport lists it. `problem` says why it cannot be used, "" if it can."""

    serial: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command on the device printed (both streams together) and its exit status."""

    status: int
    output: str


class Device(ABC):
    """One device. Every method raises DeviceError when it is gone or does not answer."""

    serial: str
    abi_property: str  # which property names the processor's kind
    bundle_target: str  # what `powerserve deploy build --target` calls bundles for such devices
    separates_errors: bool  # whether `stream` keeps standard error apart

    @abstractmethod
    def name(self) -> str:
        """The model's name as its maker writes it."""

    @abstractmethod
    def property(self, key: str) -> str:
        """A property of the system, "" if it has none of that name."""

    @abstractmethod
    def push(self, source: Path, target: PurePosixPath) -> None:
        """Write one file to the device, in place of an earlier one."""

    @abstractmethod
    def run_script(self, script: str, timeout_s: float = COMMAND_TIMEOUT_S) -> Reply:
        """Run a piece of shell script."""

    @abstractmethod
    def stream(self, script: PurePosixPath) -> None:
        """Run a script that is on the device; what it prints goes to our own streams."""

    @abstractmethod
    def forward(self, port: int, device_port: int) -> int:
        """Let `port` of this machine (0: any) lead to a port of the device; returns the port."""

    @abstractmethod
    def remove_forward(self, port: int) -> None:
        """End a forward, if there is one."""

    def push_bytes(self, data: bytes, target: PurePosixPath) -> None:
        """Write a file with this content, in place of an earlier one."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / target.name
            file.write_bytes(data)
            self.push(file, target)

    def run(self, command: Sequence[str], timeout_s: float = COMMAND_TIMEOUT_S) -> Reply:
        """Run one command."""
        return self.run_script(shlex.join(command), timeout_s)

    def check(self, script: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """What a script prints; raises DeviceError with the last line if it fails."""
        reply = self.run_script(script, timeout_s)
        if reply.status != 0:
            raise self.failure(reply.output)
        return reply.output

    def failure(self, output: str) -> DeviceError:
        """The error for a command that failed with this output."""
        if "no space left" in output.lower():
            return DeviceError(
                f"{self.serial} has no space left: delete something there and run the command "
                "again (what has been sent is kept), or `powerserve deploy clean` deletes all of it"
            )
        lines = output.strip().splitlines()
        reason = lines[-1] if lines else "it gave no reason"
        return DeviceError(f"a command on {self.serial} failed: {reason}")

    def lost(self, reason: str) -> DeviceError:
        """The error for a connection that broke off."""
        return DeviceError(
            f"the connection to {self.serial} was lost ({reason}): see that it is attached and run "
            "the command again; what has been sent is kept"
        )


def taken_port(port: int) -> DeviceError:
    """The error for a port of this machine that cannot be forwarded."""
    return DeviceError(f"port {port} of this machine is taken: choose another with --port (0: any)")


def with_status(script: str) -> str:
    """`script`, printing its exit status at the end: not every transport hands that on."""
    return f"( {script}\n) 2>&1; status=$?; echo; echo powerserve-status $status"


def parse_reply(output: str) -> Reply | None:
    """The reply of a script made by `with_status`; None if it was cut off."""
    match = _STATUS.search(output)
    return match and Reply(int(match[1]), output[: match.start()].removesuffix("\n"))
