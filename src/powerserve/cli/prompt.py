"""Where a prompt comes from, and its tokens."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from powerserve.tokenizer.tokenizer import Tokenizer


def add_prompt_flags(parser: ArgumentParser) -> None:
    """`-p` and `-f`."""
    group = parser.add_argument_group("prompt").add_mutually_exclusive_group()
    group.add_argument("-p", "--prompt", metavar="TEXT")
    group.add_argument("-f", "--prompt-file", type=Path, metavar="FILE")


def read_prompt(arguments: Namespace) -> str:
    """The prompt from the flags, or all of standard input. Raises a PowerServeError."""
    prompt = prompt_from_flags(arguments)
    return _read_stdin() if prompt is None else prompt


def prompt_from_flags(arguments: Namespace) -> str | None:
    """The prompt that `-p` or `-f` gives, None without them. Raises a PowerServeError."""
    if arguments.prompt_file is not None:
        return read_prompt_file(arguments.prompt_file)
    if arguments.prompt is None:
        return None
    return _utf8(arguments.prompt, "the prompt after -p")


def read_prompt_file(path: Path) -> str:
    """The text of a file. Raises ConfigError."""
    try:
        return path.read_bytes().decode("utf-8")  # line ends stay as they are
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"the prompt file {path} cannot be read: {reason}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the prompt file {path} is not UTF-8 text") from None


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt that is to be continued as it is. Raises UsageError if none are."""
    token_ids = tokenizer.encode(prompt)
    if not token_ids:  # "" suffices only where the tokenizer adds a first token of its own
        raise UsageError("the prompt is empty, and this model needs some text to continue")
    return token_ids


def _read_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError('there is no prompt: give one with -p "…", -f FILE or on standard input')
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not UTF-8 text") from None


def _utf8(text: str, what: str) -> str:
    """`text`, unless it stands for bytes that are not UTF-8: Python reads those as surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{what} is not UTF-8 text") from None
    return text
