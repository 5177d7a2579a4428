"""Fake phones for tests, with the real adb in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from deploy.emulated_cpu import command_on, environment_on, make_root
from deploy.fake_phone.root import add_properties

DAEMON = Path(__file__).with_name("adbd.py")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
PROGRAMS = ("adb", "mksh", "toybox", "unshare")
TIMEOUT_S = 60
PIXEL = {
    "ro.product.model": "Fake 8",
    "ro.product.cpu.abi": "arm64-v8a",
    "ro.board.platform": "zuma",
    "ro.soc.model": "Tensor G3",
}


@dataclass(frozen=True)
class PhoneSettings:
    """How a phone behaves; adbd.py explains."""

    is_authorized: bool = True
    disk_mib: int | None = None  # None: as large as the host's
    cut_after_bytes: int | None = None
    shell_v2: bool = True
    cpu: str | None = None  # one of qemu's, with nothing of the host; None: the host's
    properties: dict[str, str] = field(default_factory=lambda: dict(PIXEL))


PlugIn = Callable[..., "FakePhone"]  # the fixture `plug_in`: takes PhoneSettings or nothing


class FakePhone:
    """A phone; `data` is its /data, unless its disk is a small one."""

    def __init__(self, folder: Path, settings: PhoneSettings = PhoneSettings()) -> None:
        """`folder` is for its files; it may have been used by an earlier phone."""
        self.folder = folder
        self.root = folder / "root"
        self.data = folder / ("root/data" if settings.cpu else "data")
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start(settings)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pushed_bytes(self) -> int:
        """What it has received of files since it was started."""
        log = self.folder / "pushed"
        return int(log.read_text()) if log.exists() else 0

    def start(self, settings: PhoneSettings = PhoneSettings()) -> None:
        """Switch it on, at the port it had before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "pushed").unlink(missing_ok=True)
        shell = self._prepare_emulated(settings) if settings.cpu else self._prepare()
        file = self.folder / "settings.json"
        file.write_text(json.dumps(self._described(settings) | {"shell": shell}))
        self._process = subprocess.Popen(
            [*(() if settings.cpu else NAMESPACE), sys.executable, str(DAEMON), str(file)],
            stdout=subprocess.PIPE,
            env=environment_on(settings.cpu) if settings.cpu else None,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def stop(self) -> None:
        """Switch it off, if it is on, and a server that was left running on it."""
        if self._process is not None:
            self._process.kill()
            self.wait_for_death()
        server = self.data / "local/tmp/powerserve/server/pid"
        if server.exists():
            with suppress(ProcessLookupError):
                os.kill(int(server.read_text()), signal.SIGKILL)
            server.unlink()

    def wait_for_death(self) -> None:
        """Until the cable is pulled, as the settings told it."""
        assert self._process is not None
        self._process.communicate(timeout=TIMEOUT_S)
        self._process = None

    def _prepare(self) -> None:
        """Make what the daemon mounts; it brings its own shell."""
        self.root.mkdir(exist_ok=True)
        self.data.mkdir(exist_ok=True)

    def _prepare_emulated(self, settings: PhoneSettings) -> list[str]:
        """Make the root; returns what runs its shell on the emulated processor."""
        if not self.root.exists():
            make_root(self.root)
            add_properties(self.root / "system", settings.properties)
        return command_on(["/system/bin/sh", "-c"], self.root)

    def _described(self, settings: PhoneSettings) -> dict[str, object]:
        return asdict(settings) | {
            "root": str(self.root),
            "data": None if settings.disk_mib else str(self.data),
            "log": str(self.folder / "pushed"),
            "port": self.port,
        }


def require_phone_tools() -> None:
    """Skip the test where a phone cannot be faked."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0:
        pytest.skip("this system allows no namespaces for users")


@contextmanager
def adb_server(home: Path) -> Iterator[dict[str, str]]:
    """An adb server of our own; yields the environment variables that lead to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    variables = {"ANDROID_ADB_SERVER_PORT": str(port), "HOME": str(home)}
    adb(variables, "start-server")
    try:
        yield variables
    finally:
        adb(variables, "kill-server")


def connect(variables: dict[str, str], phone: FakePhone) -> None:
    """Let adb find the phone, anew if it was there before."""
    adb(variables, "disconnect", phone.serial)
    adb(variables, "connect", phone.serial)


def adb(variables: dict[str, str], *words: str) -> str:
    """What the real adb prints."""
    done = subprocess.run(
        [shutil.which("adb") or "/usr/bin/adb", *words],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout + done.stderr
