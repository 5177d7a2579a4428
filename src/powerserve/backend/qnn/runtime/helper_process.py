"""The helper process: started, asked one thing after another, and mourned when it crashes."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from powerserve.backend.qnn.inspect import ending
from powerserve.backend.qnn.libraries import QnnLibraries, on_android
from powerserve.backend.qnn.runtime.messages import DONE, HEAD, LENGTH_SIZE, Failure, Request
from powerserve.core.errors import BackendError

END_TIMEOUT_S = 10
_CHUNK_BYTES = 1 << 16
_MAX_DESCRIPTORS = 1
ANDROID_FOLDERS = ("/system/lib64", "/vendor/lib64")  # in this order: both have a libbinder.so

A = TypeVar("A")


class HelperRefusal(BackendError):
    """The helper could not do a request; `failure` has the details."""

    def __init__(self, action: str, failure: Failure) -> None:
        details = "; ".join((failure.text, *failure.log[:1]))
        super().__init__(f"{action} failed: {details.strip().rstrip('.')}")
        self.failure = failure


class HelperProcess:
    """A running helper; close it, or it ends with this process."""

    def __init__(self, executable: Path, libraries: QnnLibraries, time_limit_s: float) -> None:
        """`time_limit_s`: of one request. Raises BackendError if it cannot be started."""
        self._time_limit_s = time_limit_s
        self._serial = 0
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._obituary: str | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(executable, libraries, theirs.fileno())

    def ask(self, request: Request, answer: type[A], action: str) -> A:
        """Have a request done; `action` says in messages what that is ("loading x").

        Ctrl-C leaves the helper at work; its late reply is skipped.

        Raises:
            HelperRefusal: it cannot be done.
            BackendError: the helper crashed, was killed or took longer than the time limit.
        """
        if self._obituary is not None:
            raise BackendError(self._obituary)
        self._serial += 1
        try:
            self._socket.settimeout(self._time_limit_s)
            self._socket.sendall(request.frame(self._serial))
            return self._reply(answer, action)
        except TimeoutError:
            self._process.kill()
            obituary = f"{action} took more than {self._time_limit_s:g} s and was stopped"
        except (ConnectionError, EOFError):
            obituary = f"the NPU helper {self._how_it_ended()} while {action}"
        self._obituary = obituary
        raise BackendError(obituary)

    def take_descriptor(self) -> int:
        """The file descriptor that came with the last reply; the caller closes it."""
        return self._descriptors.pop()

    def close(self) -> None:
        """End the helper; harmless if it has ended."""
        self._obituary = self._obituary or "the NPU helper was closed"
        self._socket.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _start(
        self, executable: Path, libraries: QnnLibraries, descriptor: int
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [executable, str(descriptor)],
                pass_fds=(descriptor,),
                env=helper_environment(libraries, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
        except OSError as error:
            raise BackendError(
                f"the NPU helper {executable} does not start: {error.strerror}"
            ) from None

    def _reply(self, answer: type[A], action: str) -> A:
        deadline = time.monotonic() + self._time_limit_s
        while True:
            length, serial, status = HEAD.unpack(self._bytes(0, HEAD.size, deadline))
            end = LENGTH_SIZE + length
            text = self._bytes(HEAD.size, end, deadline).decode(errors="replace")
            del self._received[:end]
            if serial == self._serial:
                break
        if status != DONE:
            raise HelperRefusal(action, msgspec.json.decode(text, type=Failure))
        return msgspec.json.decode(text, type=answer)

    def _bytes(self, start: int, end: int, deadline: float) -> bytes:
        """What was received from `start` to `end`, and stays there: Ctrl-C may come at any time."""
        while len(self._received) < end:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            data, descriptors, _, _ = socket.recv_fds(self._socket, _CHUNK_BYTES, _MAX_DESCRIPTORS)
            self._descriptors += descriptors
            self._received += data
            if not data:
                raise EOFError
        return bytes(self._received[start:end])

    def _how_it_ended(self) -> str:
        how = ending(self._process.wait(END_TIMEOUT_S))
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip() and not line.startswith(" #")]
        last_words = said[-1] if said else ""
        return f"{how}, saying “{last_words}”," if last_words else how


def helper_environment(libraries: QnnLibraries, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Qualcomm's libraries find each other and the NPU's code.

    Their halves for the CPU are looked for in LD_LIBRARY_PATH, those for the NPU (the "skel"
    files) by FastRPC in ADSP_LIBRARY_PATH or DSP_LIBRARY_PATH, which separate folders by ";".
    """
    folder = str(libraries.folder)
    # On Android the inherited folders may be those of another C library than the helper's.
    others = ANDROID_FOLDERS if on_android() else (inherited.get("LD_LIBRARY_PATH"),)
    changed = {"LD_LIBRARY_PATH": ":".join(filter(None, (folder, *others)))}
    for name in ("ADSP_LIBRARY_PATH", "DSP_LIBRARY_PATH"):
        changed[name] = ";".join(filter(None, (folder, inherited.get(name))))
    return {**inherited, **changed}
