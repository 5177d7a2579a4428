"""Reading what the user says: lines from a terminal, with editing and a history, or from a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.store import default_folder

PROMPT = "> "
CONTINUED = ". "
BLOCK_MARK = '"""'
HISTORY_LENGTH = 1000  # lines
PRIVATE_MODE = 0o600  # questions are nobody else's business

ReadLine = Callable[[str], str | None]  # takes the prompt to show; None at the end of input


def read_turn(read_line: ReadLine) -> str | None:
    '''The next message or command, None at the end of input.

    A message goes on over lines that end in a backslash, and from """ to the next """.
    '''
    line = read_line(PROMPT)
    if line is None:
        return None
    if line.startswith(BLOCK_MARK):
        return _read_block(line.removeprefix(BLOCK_MARK), read_line)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(CONTINUED) or "")
    return "\n".join(lines)


def _read_block(line: str | None, read_line: ReadLine) -> str:
    lines = []
    while line is not None:
        if line.rstrip().endswith(BLOCK_MARK):
            lines.append(line.rstrip().removesuffix(BLOCK_MARK))
            break
        lines.append(line)
        line = read_line(CONTINUED)
    return "\n".join(lines).strip("\n")


def line_reader() -> ReadLine:
    """The reader for this program's standard input. Raises UsageError if that is closed."""
    if sys.stdin is None:
        raise UsageError("standard input is closed, so there is nobody to chat with")
    return _read_from_terminal if sys.stdin.isatty() else _read_from_pipe


def _read_from_terminal(prompt: str) -> str | None:
    if not sys.stdout.isatty():  # the answers go to a file, so the prompt must not
        print(prompt, end="", file=sys.stderr, flush=True)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        return None


def _read_from_pipe(prompt: str) -> str | None:
    line = sys.stdin.buffer.readline()
    try:
        return line.decode("utf-8").rstrip("\r\n") if line else None
    except UnicodeDecodeError:
        raise UsageError("standard input is not UTF-8 text") from None


@contextlib.contextmanager
def line_history(file: Path | None = None) -> Iterator[None]:
    """Editing and history for `input` where the system has them; lines are kept in `file`.

    Whatever goes wrong with the file is no reason to refuse a chat, so it is ignored.
    """
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    file = file or default_folder().parent / "chat_history"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            readline.add_history(line)
    try:
        yield
    finally:
        first = max(0, readline.get_current_history_length() - HISTORY_LENGTH)
        count = readline.get_current_history_length()
        lines = [readline.get_history_item(index + 1) for index in range(first, count)]
        with contextlib.suppress(OSError):
            os.makedirs(file.parent, exist_ok=True)
            text = "".join(f"{line}\n" for line in lines)
            atomic.write_bytes(file, text.encode("utf-8", "replace"), mode=PRIVATE_MODE)
