"""The server's process, and what it takes of the machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from powerserve.core.errors import UsageError

_READY = b"powerserve is listening on "
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process takes of the machine."""

    resident_bytes: int
    num_threads: int
    num_files: int  # open file descriptors


class ServerProcess:
    """`powerserve serve` on a free port."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self.host, self.port = "", 0

    @classmethod
    async def start(cls, flags: Sequence[str], environment: Mapping[str, str], log: Path) -> Self:
        """Start it, with its words in the file `log`, and wait until it listens.

        Raises UsageError if it does not.
        """
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "powerserve", "serve", "--port", "0", *flags),
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
            )
        server = cls(process, log)
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.startswith(_READY):
            await process.wait()
            raise UsageError(f"the server does not start: {server.log()}")
        url = urlsplit(line.removeprefix(_READY).decode().strip())
        server.host, server.port = url.hostname or "", url.port or 0
        return server

    def footprint(self) -> Footprint:
        """Memory, threads and open files now, from /proc (Linux only)."""
        folder = Path(f"/proc/{self._process.pid}")
        pages = int((folder / "statm").read_text().split()[1])
        return Footprint(
            pages * _PAGE_BYTES,
            sum(1 for _ in (folder / "task").iterdir()),
            sum(1 for _ in (folder / "fd").iterdir()),
        )

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    def log(self) -> str:
        """What it has written to standard error."""
        return self._log.read_text(errors="replace")

    async def stop(self) -> int:
        """End it as SIGTERM does; its exit status. Killed if that takes a minute."""
        if self.is_running():
            self._process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()
