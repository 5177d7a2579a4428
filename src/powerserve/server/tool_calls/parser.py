"""Finding calls of tools in an answer while it is generated."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from powerserve.server.tags import first_tag, held_length
from powerserve.server.tool_calls.json_span import JsonSpan
from powerserve.server.tool_calls.reader import CallReader
from powerserve.server.tool_calls.syntax import CallSyntax, NamedHead

_WHITESPACE = " \t\r\n"
_LONGEST_HEAD = 300  # characters
_ARGUMENT_KEYS = ("arguments", "parameters")
# The usual order of keys: from here on the arguments can be passed on as they come.
_HEAD = re.compile(
    r"""\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,"""
    rf"""\s*"(?:{"|".join(_ARGUMENT_KEYS)})"\s*:\s*(?=\{{\s*["}}])"""
)
_FIRST_KEYS = tuple(f'"{key}"' for key in ("name", "type", "id", "function", *_ARGUMENT_KEYS))


class ToolCallParser(CallReader):
    """Reads one answer: text that looks like the call of a known tool becomes one.

    All else stays text, broken calls included, unless their arguments have begun: these are passed
    on as they come, so whoever calls the tool has to check them.
    """

    def __init__(self, names: Collection[str], syntax: CallSyntax) -> None:
        """`names` are the tools."""
        super().__init__()
        self._names = names
        self._syntax = syntax
        self._openers = syntax.openers
        self._closers = syntax.closers
        self._between = syntax.separators + _WHITESPACE
        self._before = syntax.brackets + _WHITESPACE
        self._span = JsonSpan()
        self._span_length = 0  # characters of the buffer that the span has seen
        self._is_nested = False  # whether the arguments stand in another object
        self._may_close = 0  # how many of the call's closing tags may still come

    # The states. Each reads what it can, and returns whether another state shall go on.

    def _read_start(self, is_last: bool) -> bool:
        """Nothing but white space has come yet."""
        text = self._buffer.lstrip()
        if not text:
            return is_last and self._enter(self._read_text)
        if text.startswith("{"):
            return self._begin_call(len(self._buffer) - len(text))
        return self._enter(self._read_text)

    def _read_text(self, is_last: bool) -> bool:
        found = first_tag(self._buffer, self._openers)
        if found is not None:
            start, opener = found
            certain = len(self._buffer[:start].rstrip())
            self._emit_text(certain)
            return self._begin_call(start - certain + len(opener))
        held = 0 if is_last else held_length(self._buffer, self._openers)
        self._emit_text(len(self._buffer) - held)
        return False

    def _read_candidate(self, is_last: bool) -> bool:
        """The buffer may begin with a call."""
        text = self._buffer.lstrip(self._before)
        self._opened += self._buffer[: len(self._buffer) - len(text)]
        self._buffer = text
        if head := _HEAD.match(text):
            return self._read_head(_json_or_none(head[1]), head.end(), is_nested=True)
        if not text.startswith("{") and self._syntax.named_head is not None:
            return self._read_named(self._syntax.named_head, is_last)
        if not _may_become_call(text):
            return self._reject()
        end = self._span.advance(text[self._span_length :])
        if end is not None:
            return self._read_whole(self._span_length + end)
        self._span_length = len(text)
        return is_last and self._reject()

    def _read_named(self, head: NamedHead, is_last: bool) -> bool:
        """The name comes before the object."""
        if found := head.whole.match(self._buffer):
            return self._read_head(found[1], found.end(), is_nested=False)
        may_come = len(self._buffer) <= _LONGEST_HEAD and head.beginning.fullmatch(self._buffer)
        return (is_last or not may_come) and self._reject()

    def _read_arguments(self, is_last: bool) -> bool:
        end = self._span.advance(self._buffer)
        length = len(self._buffer) if end is None else end
        self._emit_arguments(self._buffer[:length])
        self._buffer = self._buffer[length:]
        if end is None:
            return False
        if not self._is_nested:
            return self._enter(self._read_gap)
        self._span = JsonSpan()
        self._span.depth = 1  # the object that the arguments stand in
        return self._enter(self._read_tail)

    def _read_tail(self, is_last: bool) -> bool:
        """What follows the arguments in the object says nothing more."""
        end = self._span.advance(self._buffer)
        self._buffer = "" if end is None else self._buffer[end:]
        return end is not None and self._enter(self._read_gap)

    def _read_gap(self, is_last: bool) -> bool:
        """After a call there may be a closing tag, or another call."""
        self._buffer = self._buffer.lstrip(self._between)
        closers = self._closers if self._may_close else ()
        for tag in closers:
            if self._buffer.startswith(tag):
                self._buffer = self._buffer.removeprefix(tag)
                self._may_close -= 1
                return True
        for tag in (*self._openers, "{"):
            if self._buffer.startswith(tag):
                return self._begin_call(len(tag.rstrip("{")))
        if not is_last and any(tag.startswith(self._buffer) for tag in (*closers, *self._openers)):
            return False
        return bool(self._buffer) and self._enter(self._read_text)

    # The transitions.

    def _begin_call(self, opened_length: int) -> bool:
        self._opened = self._buffer[:opened_length]
        self._buffer = self._buffer[opened_length:]
        self._span, self._span_length = JsonSpan(), 0
        return self._enter(self._read_candidate)

    def _reject(self) -> bool:
        """It was text after all; a later opener may still lead to a call."""
        self._texts.append(self._opened)
        if not self._opened.strip():
            self._emit_text(1)  # a bare object, which would be tried again
        return self._enter(self._read_text)

    def _read_head(self, name: Any, length: int, *, is_nested: bool) -> bool:
        if name not in self._names:
            return self._reject()
        self._emit_call(name)
        self._buffer = self._buffer[length:]
        self._is_nested = is_nested
        self._span = JsonSpan()
        return self._enter(self._read_arguments)

    def _read_whole(self, length: int) -> bool:
        """A complete object whose keys are in another order, or with other values than usual."""
        call = _call_in(_json_or_none(self._buffer[:length]))
        if call is None or call[0] not in self._names:
            return self._reject()
        self._emit_call(call[0])
        self._emit_arguments(call[1])
        self._buffer = self._buffer[length:]
        return self._enter(self._read_gap)

    def _emit_text(self, length: int) -> None:
        self._texts.append(self._buffer[:length])
        self._buffer = self._buffer[length:]

    def _emit_call(self, name: str) -> None:
        self._begin_call_of(self._syntax.new_call_id(), name)
        self._may_close = self._syntax.max_closers


def _may_become_call(text: str) -> bool:
    """Whether `text`, so far, begins as an object with one of the keys of a call."""
    if not text.startswith("{"):
        return not text
    key = text[1:].lstrip()
    return any(key.startswith(first) or first.startswith(key) for first in _FIRST_KEYS)


def _call_in(value: Any) -> tuple[str, str] | None:
    """Name and arguments of a call given as a JSON object, None if it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = value.get("name", value.get("function"))
    arguments: Any = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    if isinstance(arguments, str):  # JSON once more
        arguments = _json_or_none(arguments)
    if not isinstance(name, str) or not isinstance(arguments or {}, dict):
        return None
    return name, json.dumps(arguments or {})


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which no other reader of JSON would take."""
    raise ValueError(name)
