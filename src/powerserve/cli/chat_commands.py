"""What a user can do in a chat besides talking: the commands that begin with a slash."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from powerserve.cli.chat_session import ChatSession, note
from powerserve.cli.conversation import Conversation
from powerserve.core.errors import UsageError

SLASH = "/"
_LEAVE = ("exit", "quit", "bye")
_HELP = '''\
/clear         begin a new conversation
/system TEXT   set the system message; without TEXT there is none
/regenerate    answer the last question once more
/save FILE     write the conversation as JSON
/load FILE     read a conversation
/stats         speed of the last answer, and how full the context is
/exit          leave, as Ctrl-D does
A message may have several lines: end a line with \\, or put """ before and after.
Ctrl-C stops an answer. A space before a slash makes it a message.'''


def is_command(text: str) -> bool:
    """Whether `text` is meant for the program and not for the model."""
    return text.startswith(SLASH)


def run_command(session: ChatSession, text: str) -> bool:
    """Do what `text` says; False if it says to leave. Raises PowerServeError."""
    name, _, argument = text.removeprefix(SLASH).partition(" ")
    if name in _LEAVE:
        return False
    if name not in _COMMANDS:
        raise UsageError(f"there is no command {SLASH}{name}; {SLASH}help lists them")
    _COMMANDS[name](session, argument.strip())
    return True


def _help(session: ChatSession, argument: str) -> None:
    print(_HELP, file=sys.stderr)


def _clear(session: ChatSession, argument: str) -> None:
    session.conversation = Conversation(session.conversation.system)
    note("a new conversation")


def _system(session: ChatSession, argument: str) -> None:
    session.conversation.system = argument or None
    note("the system message is set" if argument else "no system message")


def _regenerate(session: ChatSession, argument: str) -> None:
    session.regenerate()


def _save(session: ChatSession, argument: str) -> None:
    path = _path(argument)
    session.conversation.save(path)
    note(f"saved {path}")


def _load(session: ChatSession, argument: str) -> None:
    session.conversation = Conversation.load(_path(argument))
    note(f"loaded {len(session.conversation.turns)} messages")
    if session.conversation.awaits_answer:
        session.answer()


def _stats(session: ChatSession, argument: str) -> None:
    from powerserve.cli.statistics import info, speed_lines

    if session.last is None:
        note("there is no answer yet")
        return
    used = session.last.num_prompt_tokens + len(session.last.token_ids)
    info(f"context     : {used} of {session.context_size} tokens", sys.stderr)
    info(f"cached      : {session.last.num_cached_tokens} tokens of the prompt", sys.stderr)
    for line in speed_lines(session.last):
        info(line, sys.stderr)


def _path(argument: str) -> Path:
    if not argument:
        raise UsageError("name a file")
    return Path(argument).expanduser()


_COMMANDS: dict[str, Callable[[ChatSession, str], None]] = {
    "help": _help,
    "clear": _clear,
    "system": _system,
    "regenerate": _regenerate,
    "save": _save,
    "load": _load,
    "stats": _stats,
}
