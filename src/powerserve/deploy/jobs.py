"""Running PowerServe on a device: the arguments in a script, the prompt in a file beside it.

A lost connection must not look like success (adb exits with 0 then), and hdc hands on no exit
status at all. So the script writes the status to a file, which is read when the stream has ended.
"""

from __future__ import annotations

import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from powerserve.core.errors import DeviceError
from powerserve.deploy.device import Device
from powerserve.deploy.layout import JOBS

OLD_AFTER_DAYS = 1  # when the leavings of a lost job are deleted


@dataclass(frozen=True, slots=True)
class Program:
    """The installed program, and variables for its environment."""

    script: PurePosixPath
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, arguments: Sequence[str]) -> str:
        """Shell text that becomes the program."""
        exports = "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()
        )
        return f"{exports}exec {shlex.join(['sh', str(self.script), *arguments])}"


@dataclass(frozen=True, slots=True)
class JobFolder:
    """A job's folder on the device."""

    device: Device
    path: PurePosixPath

    def write(self, name: str, content: str) -> PurePosixPath:
        """Put a small file there. Raises DeviceError."""
        self.device.push_bytes(content.encode(), self.path / name)
        return self.path / name


@contextmanager
def job_folder(device: Device) -> Iterator[JobFolder]:
    """A folder for one job, which is gone afterwards. Raises DeviceError."""
    path = JOBS / secrets.token_hex(8)
    device.check(
        f"mkdir -p {path}; find {JOBS} -mindepth 1 -maxdepth 1 -mtime +{OLD_AFTER_DAYS} "
        "-exec rm -rf {} +"
    )
    try:
        yield JobFolder(device, path)
    finally:
        with suppress(DeviceError):  # an error that is under way says more
            device.run(["rm", "-rf", str(path)])


def run_program(folder: JobFolder, program: Program, arguments: Sequence[str]) -> int:
    """Run the program with its output on our streams; returns its exit status.

    Raises DeviceError if the connection is lost before the end.
    """
    device = folder.device
    script = folder.write("job.sh", _job_script(device, folder.path, program.command(arguments)))
    try:
        device.stream(script)
    except KeyboardInterrupt:
        with suppress(DeviceError):
            device.run_script(f"kill $(cat {folder.path}/pid)")
        raise
    reply = device.run(["cat", str(folder.path / "status")])
    if reply.status != 0:
        raise DeviceError(f"the connection to {device.serial} was lost before the answer's end")
    if not device.separates_errors:
        sys.stderr.write(device.run(["cat", str(folder.path / "errors")]).output)
    return int(reply.output)


def _job_script(device: Device, folder: PurePosixPath, command: str) -> str:
    errors = "" if device.separates_errors else " 2>errors"
    return (
        f"cd {folder} || exit 1\n"
        f"(\n{command}\n) </dev/null{errors} &\n"
        "child=$!\n"
        "echo $child > pid\n"
        "trap 'kill $child 2>/dev/null' HUP INT TERM\n"
        "wait $child; status=$?\n"
        "while kill -0 $child 2>/dev/null; do wait $child; status=$?; done\n"
        "echo $status > status.new && mv status.new status\n"
    )
