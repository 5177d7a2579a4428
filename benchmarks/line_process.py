"""A program that loads once and then answers questions: a line of JSON each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


class LineProcess:
    """A child process that says a line when it is ready, and answers each line with a line.

    It ends with its input. Ctrl-C is for the parent alone.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `command` and wait until it is ready; exits if it fails, as `ask` does."""
        self.name = name
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self.greeting = self._read()

    def ask(self, question: Any) -> Any:
        """The answer to a question, both anything that JSON can express."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._read())

    def pause(self) -> None:
        """Stop all its threads: those that wait for work by spinning would take others' cores."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it."""
        self.resume()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed; see its messages above")
        return line
