"""The helper process: started, asked one thing after another, and mourned when it crashes."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from powerserve.backend.qnn.libraries import QnnLibraries, on_android
from powerserve.backend.qnn.runtime.messages import DONE, HEAD, LENGTH_SIZE, Failure, Request
from powerserve.core.errors import BackendError
from powerserve.core.exit_status import describe_exit

END_TIMEOUT_S = 10
_CHUNK_BYTES = 1 << 16
_MAX_DESCRIPTORS = 1
ANDROID_FOLDERS = ("/system/lib64", "/vendor/lib64")  # in this order: both have a libbinder.so

A = TypeVar("A")


class HelperError(BackendError):
    """The helper could not do a request or did not survive it; `log`: what QNN said meanwhile."""

    def __init__(self, message: str, log: Sequence[str]) -> None:
        super().__init__(message)
        self.log = log


class HelperProcess:
    """A running helper; close it, or it ends with this process."""

    def __init__(self, executable: Path, libraries: QnnLibraries, time_limit_s: float) -> None:
        """`time_limit_s`: of one request. Raises BackendError if it cannot be started."""
        self._time_limit_s = time_limit_s
        self._serial = 0
        self._received = bytearray()
        self._descriptors: list[int] = []
        self._obituary: str | None = None
        # In memory: Android has no folder for temporary files.
        self._log = os.fdopen(os.memfd_create("powerserve-npu-log"), "w+b")
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = self._start(executable, libraries, theirs.fileno())

    def ask(self, request: Request, answer: type[A], action: str) -> A:
        """Have a request done; `action` says in messages what that is ("loading x").

        Ctrl-C leaves the helper at work; its late reply is skipped.

        Raises:
            HelperError: it cannot be done, or the helper crashed or was killed.
            BackendError: it took longer than the time limit, or the helper ended earlier.
        """
        if self._obituary is not None:
            raise BackendError(self._obituary)
        self._serial += 1
        log_start = os.fstat(self._log.fileno()).st_size
        try:
            status, text = self._exchange(request)
        except TimeoutError:
            self._process.kill()
            self._obituary = f"{action} took more than {self._time_limit_s:g} s and was stopped"
            raise BackendError(self._obituary) from None
        except (ConnectionError, EOFError):
            how, log = describe_exit(self._wait()), self._log_since(log_start)
            last_words = f", saying “{log[-1]}”," if log else ""
            self._obituary = f"the NPU helper {how}{last_words} while {action}"
            raise HelperError(self._obituary, log) from None
        if status == DONE:
            return msgspec.json.decode(text, type=answer)
        failure = msgspec.json.decode(text, type=Failure)
        log = _without_level(failure.log)
        details = "; ".join((failure.text, *log[:1])).rstrip(".")
        raise HelperError(f"{action} failed: {details}", log)

    def take_descriptor(self) -> int:
        """The file descriptor that came with the last reply; the caller closes it."""
        return self._descriptors.pop()

    def close(self) -> None:
        """End the helper; harmless if it has ended."""
        self._obituary = self._obituary or "the NPU helper was closed"
        self._socket.close()
        self._wait()
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
            self._socket.close()
            self._log.close()
            raise BackendError(
                f"the NPU helper {executable} does not start: {error.strerror}"
            ) from None

    def _exchange(self, request: Request) -> tuple[int, str]:
        """The status and text of the reply to a request."""
        deadline = time.monotonic() + self._time_limit_s
        self._socket.settimeout(self._time_limit_s)
        self._socket.sendall(request.frame(self._serial))
        while True:
            length, serial, status = HEAD.unpack(self._bytes(0, HEAD.size, deadline))
            end = LENGTH_SIZE + length
            text = self._bytes(HEAD.size, end, deadline).decode(errors="replace")
            del self._received[:end]
            if serial == self._serial:
                return status, text

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

    def _wait(self) -> int:
        """The exit status of the helper, which knows that it shall end."""
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _log_since(self, start: int) -> list[str]:
        """The lines that the helper and the libraries printed since the log had `start` bytes."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), size - start, start).decode(errors="replace")
        return _without_level(text.splitlines())


def _without_level(lines: Sequence[str]) -> list[str]:
    """Lines of QNN's log that say something, without the mark of an error."""
    cleaned = (line.strip().removeprefix("<E>").strip() for line in lines)
    return [line for line in cleaned if line]


def helper_environment(libraries: QnnLibraries, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment in which Qualcomm's libraries find each other and the NPU's code.

    Their halves for the CPU are looked for in LD_LIBRARY_PATH, those for the NPU (the "skel"
    files) by FastRPC in DSP_LIBRARY_PATH, if that is set, else in ADSP_LIBRARY_PATH, which separate
    folders by ";".
    """
    folder = str(libraries.folder)
    # On Android the inherited folders may be those of another C library than the helper's.
    others = ANDROID_FOLDERS if on_android() else (inherited.get("LD_LIBRARY_PATH"),)
    changed = {"LD_LIBRARY_PATH": ":".join(filter(None, (folder, *others)))}
    name = "DSP_LIBRARY_PATH" if "DSP_LIBRARY_PATH" in inherited else "ADSP_LIBRARY_PATH"
    changed[name] = ";".join(filter(None, (folder, inherited.get(name))))
    return {**inherited, **changed}
