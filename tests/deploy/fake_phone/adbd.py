"""The fake adb daemon as a program.

python adbd.py SETTINGS     (a file of JSON)

Without a shell in its settings it mounts a root, and wants a mount namespace of its own. It prints
the port it listens on. When it has received `cut_after_bytes` of pushed files, it dies in the
middle, as if somebody had pulled the cable.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from protocol import Connection
from root import build_root, shell_in
from services import Services

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h
ENVIRONMENT = {
    "PATH": "/system/bin",
    "HOME": "/",
    "TMPDIR": "/data/local/tmp",
    "ANDROID_ROOT": "/system",
    "ANDROID_DATA": "/data",
}


class PushCounter:
    """Counts the bytes of pushed files, and ends it all when there are too many."""

    def __init__(self, log: Path, cut_after_bytes: int | None) -> None:
        self._log = log
        self._limit = cut_after_bytes
        self._total = 0

    def count(self, size: int) -> None:
        self._total += size
        fresh = self._log.with_suffix(".new")
        fresh.write_text(str(self._total))
        fresh.replace(self._log)
        if self._limit is not None and self._total > self._limit:
            os._exit(1)


def main(settings: dict[str, Any]) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)  # tests may be killed
    root = Path(settings["root"])
    shell = settings["shell"]
    if shell is None:
        data = settings["data"]
        build_root(root, data and Path(data), settings["disk_mib"], settings["properties"])
        shell = shell_in(root)
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
    counter = PushCounter(Path(settings["log"]), settings["cut_after_bytes"])
    services = Services(root, shell, counter.count)
    features = "shell_v2,cmd" if settings["shell_v2"] else "cmd"
    banner = f"device::ro.product.name=fake;ro.product.model=Fake;features={features}"
    listener = socket.create_server(("127.0.0.1", settings["port"]))
    print(listener.getsockname()[1], flush=True)
    while True:
        accepted = listener.accept()[0]
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(accepted, banner, services.serve, settings["is_authorized"])
        threading.Thread(target=connection.run, daemon=True).start()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
