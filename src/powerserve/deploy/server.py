"""The server on a device: started beside the connection, so that it outlives it.

Its folder holds `log`, `pid` (its process), `version` (the bundle it runs from) and `record.json`
(what this machine told it). The log's first line names the port that it found free.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from powerserve.core.errors import DeviceError
from powerserve.deploy.device import Device
from powerserve.deploy.jobs import Program, job_folder
from powerserve.deploy.layout import SERVER
from powerserve.storage.progress import Progress

POLL_S = 0.3
START_TIMEOUT_S = 900.0  # what a large model may take to load
STOP_TIMEOUT_S = 40.0  # the server lets running answers finish for 30 s
KILL_TIMEOUT_S = 10.0

_READY = re.compile(r"powerserve is listening on http://127\.0\.0\.1:(\d+)")
_IS_RUNNING = f"p=$(cat {SERVER}/pid) && kill -0 $p && grep -q powerserve /proc/$p/cmdline"


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A server that was started: the model's name, its port there and the one that leads to it."""

    model: str
    device_port: int
    port: int

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        return f"http://127.0.0.1:{self.port}"


def start_server(
    device: Device,
    program: Program,
    arguments: Sequence[str],
    model: str,
    port: int,
    progress: Progress,
) -> ServerRecord:
    """Start `powerserve serve ARGUMENTS` and let `port` (0: any) of this machine lead to it.

    `arguments` name no port: the server takes one that is free there. Returns when it answers.
    Raises DeviceError if it does not start, or if the port is taken.
    """
    command = program.command(["serve", "--host", "127.0.0.1", "--port", "0", *arguments])
    device.check(f"mkdir -p {SERVER}")
    device.push_bytes(f"cd {SERVER}\necho $$ > pid\n{command}\n".encode(), SERVER / "start.sh")
    device.check(
        f"cd {SERVER}; rm -f pid log record.json; echo {program.script.parents[1].name} > version\n"
        f"setsid sh {SERVER}/start.sh </dev/null >log 2>&1 &\n"
        "while [ ! -s pid ]; do sleep 0.1; done"
    )
    try:
        progress.note(f"loading {model} on {device.serial}")
        device_port = _wait_until_ready(device)
        record = ServerRecord(model, device_port, device.forward(port, device_port))
        device.push_bytes(msgspec.json.encode(record), SERVER / "record.json")
    except BaseException:
        with suppress(DeviceError):
            stop_server(device)
        raise
    return record


def find_server(device: Device) -> ServerRecord | None:
    """The server that runs on the device, if one does."""
    reply = device.run_script(f"{_IS_RUNNING} && cat {SERVER}/record.json")
    if reply.status != 0:
        return None
    try:
        return msgspec.json.decode(reply.output, type=ServerRecord)
    except msgspec.DecodeError:
        raise DeviceError(
            f"the record of the server on {device.serial} is damaged: `powerserve deploy stop` "
            "ends the server"
        ) from None


def stop_server(device: Device) -> bool:
    """End the server and its forward; returns whether one was running. Raises DeviceError."""
    with suppress(DeviceError):  # a damaged record: the process is known all the same
        if record := find_server(device):
            device.remove_forward(record.port)
    was_running = device.run_script(f"{_IS_RUNNING} && kill $p").status == 0
    if was_running and not _ends_within(device, STOP_TIMEOUT_S):
        device.run_script(f"{_IS_RUNNING} && kill -9 $p")
        if not _ends_within(device, KILL_TIMEOUT_S):
            raise DeviceError(f"the server on {device.serial} does not end: restart the device")
    device.check(f"rm -f {SERVER}/pid {SERVER}/version {SERVER}/record.json")
    return was_running


def print_log(device: Device, *, follow: bool) -> None:
    """Let the server's log appear on our standard output. Raises DeviceError if there is none."""
    log = SERVER / "log"
    if device.run(["test", "-f", str(log)]).status != 0:
        raise DeviceError(f"no server has been started on {device.serial}")
    with job_folder(device) as folder:
        reader = f"tail -n +1 -f {log}" if follow else f"cat {log}"
        device.stream(folder.write("log.sh", f"exec {reader}\n"))


def _wait_until_ready(device: Device) -> int:
    """The server's port on the device, as soon as it listens there."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        is_running = device.run_script(_IS_RUNNING).status == 0
        log = device.run(["cat", str(SERVER / "log")]).output
        if ready := _READY.search(log):
            return int(ready[1])
        if not is_running:
            lines = log.strip().splitlines()
            reason = lines[-1] if lines else "it wrote nothing"
            raise DeviceError(f"the server on {device.serial} did not start: {reason}")
        time.sleep(POLL_S)
    raise DeviceError(f"the server on {device.serial} was not ready in {START_TIMEOUT_S:.0f} s")


def _ends_within(device: Device, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while device.run_script(_IS_RUNNING).status == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
