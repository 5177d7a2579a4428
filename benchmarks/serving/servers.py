"""The servers that are compared: each a process of its own, with the same model and settings."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
START_LIMIT_S = 180


@dataclass(frozen=True, slots=True)
class Setting:
    """What all of them run."""

    model: Path
    threads: int
    context: int  # cells that all running answers share
    parallel: int  # answers at once


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server's name and the command that starts it, but for the port."""

    name: str
    command: tuple[str, ...]
    port_flag: str
    environment: Mapping[str, str]


def powerserve(setting: Setting, name: str, ggml: Path) -> Contestant:
    """This environment's `powerserve` with the ggml in a folder."""
    program = str(Path(sys.executable).parent / "powerserve")
    flags = ("-c", str(setting.context), "-t", str(setting.threads), "-np", str(setting.parallel))
    return Contestant(
        name,
        (program, "serve", "-m", str(setting.model), *flags),
        "--port",
        {"POWERSERVE_GGML_DIR": str(ggml)},
    )


def llama_server(setting: Setting, name: str, program: Path) -> Contestant:
    """llama.cpp's own `llama-server`; all slots share the cells, as ours do."""
    flags = ("-c", str(setting.context), "-t", str(setting.threads), "-np", str(setting.parallel))
    command = (str(program), "-m", str(setting.model), *flags, "--kv-unified")
    return Contestant(name, command, "--port", {})


def xllamacpp(setting: Setting, name: str, python: Path) -> Contestant:
    """The same server inside xllamacpp, in the environment of `python`."""
    sizes = (str(setting.threads), str(setting.context), str(setting.parallel))
    script = str(HERE / "peer_xllamacpp.py")
    return Contestant(name, (str(python), script, str(setting.model), *sizes), "--port", {})


@contextmanager
def running(contestant: Contestant, log: Path) -> Iterator[str]:
    """Start one, wait until it can answer, yield its URL; what it writes goes to `log`."""
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [*contestant.command, contestant.port_flag, str(port)]
    environment = os.environ | dict(contestant.environment)
    with (
        log.open("wb") as output,
        subprocess.Popen(command, env=environment, stdout=output, stderr=output) as process,
    ):
        try:
            _wait_until_ready(process, url, log)
            yield url
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not _is_healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{process.args} did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as reply:
            return json.load(reply).get("status") == "ok"
    except (OSError, ValueError):
        return False
