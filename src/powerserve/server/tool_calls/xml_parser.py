"""Finding calls whose arguments are elements, `<parameter=key>value</parameter>`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from powerserve.server.tags import first_tag, held_length, partial_length
from powerserve.server.tool_calls.definitions import ToolDefinition
from powerserve.server.tool_calls.reader import CallReader
from powerserve.server.tool_calls.syntax import long_call_id

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END_OF_FUNCTION = "<function=", "</function>"
PARAMETER, END_OF_PARAMETER = "<parameter=", "</parameter>"

_OPENERS = (OPEN, FUNCTION)  # some models forget the first
_NAME = re.compile(r"\s*([^\s<>]+)\s*>")
_LONGEST_NAME = 200  # characters, the rest of the tag included
_PYTHON = {"True": "true", "False": "false", "None": "null"}  # as templates write them


class XmlCallParser(CallReader):
    """Reads one answer. A call of an unknown tool stays text, as does what only begins like one.

    Values are turned into JSON by the types in the tool's schema: texts are passed on as they come,
    other values when they are complete.
    """

    def __init__(self, tools: Sequence[ToolDefinition]) -> None:
        super().__init__()
        self._properties = {tool.name: properties_of(tool) for tool in tools}
        self._name = ""  # of the function that is open
        self._value: list[str] | None = None  # of a parameter that is no text
        self._num_parameters = 0

    # The states. Each reads what it can, and returns whether another state shall go on.

    def _read_start(self, is_last: bool) -> bool:
        return self._enter(self._read_text)

    def _read_text(self, is_last: bool) -> bool:
        found = first_tag(self._buffer, _OPENERS)
        if found is None:
            held = 0 if is_last else held_length(self._buffer, _OPENERS)
            self._texts.append(self._take(len(self._buffer) - held))
            return False
        start, tag = found
        self._texts.append(self._take(len(self._buffer[:start].rstrip())))
        self._opened = self._take(self._buffer.index(tag) + len(tag))
        return self._enter(self._read_function if tag == OPEN else self._read_name)

    def _read_function(self, is_last: bool) -> bool:
        """After `<tool_call>` a function has to come."""
        self._opened += self._take(len(self._buffer) - len(self._buffer.lstrip()))
        if self._buffer.startswith(FUNCTION):
            self._opened += self._take(len(FUNCTION))
            return self._enter(self._read_name)
        may_come = FUNCTION.startswith(self._buffer) and not is_last
        return not may_come and self._reject()

    def _read_name(self, is_last: bool) -> bool:
        if found := _NAME.match(self._buffer):
            if found[1] not in self._properties:
                return self._reject()
            self._take(found.end())
            return self._begin_call(found[1])
        may_come = len(self._buffer) < _LONGEST_NAME and ">" not in self._buffer and not is_last
        return not may_come and self._reject()

    def _read_parameters(self, is_last: bool) -> bool:
        """Between elements, where anything else is passed over."""
        found = first_tag(self._buffer, (PARAMETER, END_OF_FUNCTION, CLOSE))
        if found is None:
            self._take(len(self._buffer) - partial_length(self._buffer, _INNER))
            return False
        start, tag = found
        if tag != PARAMETER:
            self._take(start + (len(tag) if tag == END_OF_FUNCTION else 0))
            self._emit_arguments("}" if self._num_parameters else "{}")
            return self._enter(self._read_gap)
        key = _NAME.match(self._buffer, start + len(tag))
        if key is None:
            return self._skip_tag(start + len(tag))
        self._take(key.end())
        return self._begin_parameter(key[1])

    def _read_value_start(self, is_last: bool) -> bool:
        """One line feed belongs to the tag."""
        if not self._buffer:
            return False
        if self._buffer.startswith("\n"):
            self._take(1)
        return self._enter(self._read_value)

    def _read_value(self, is_last: bool) -> bool:
        end = self._buffer.find(END_OF_PARAMETER)
        if end < 0:
            self._add_to_value(self._take(len(self._buffer) - _held_in_value(self._buffer)))
            return False
        self._add_to_value(self._take(end).removesuffix("\n"))
        self._take(len(END_OF_PARAMETER))
        self._end_value()
        return self._enter(self._read_parameters)

    def _read_gap(self, is_last: bool) -> bool:
        """After a call there may be a closing tag."""
        self._buffer = self._buffer.lstrip()
        if self._buffer.startswith(CLOSE):
            self._take(len(CLOSE))
            self._buffer = self._buffer.lstrip()
            return self._enter(self._read_after)
        may_come = CLOSE.startswith(self._buffer) and not is_last
        return not may_come and self._enter(self._read_text)

    def _read_after(self, is_last: bool) -> bool:
        """White space between calls is not text."""
        self._buffer = self._buffer.lstrip()
        return bool(self._buffer) and self._enter(self._read_text)

    # The transitions.

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _reject(self) -> bool:
        self._texts.append(self._opened)
        return self._enter(self._read_text)

    def _skip_tag(self, length: int) -> bool:
        """A parameter without a name, or one whose name is not complete yet."""
        if ">" not in self._buffer[length:] and len(self._buffer) < length + _LONGEST_NAME:
            return False
        self._take(length)
        return True

    def _begin_call(self, name: str) -> bool:
        self._name, self._num_parameters = name, 0
        self._begin_call_of(long_call_id(), name)
        return self._enter(self._read_parameters)

    def _begin_parameter(self, key: str) -> bool:
        self._emit_arguments(("{" if not self._num_parameters else ", ") + json.dumps(key) + ": ")
        self._num_parameters += 1
        if is_text(self._properties[self._name].get(key)):
            self._value = None
            self._emit_arguments('"')
        else:
            self._value = []
        return self._enter(self._read_value_start)

    def _add_to_value(self, text: str) -> None:
        if self._value is None:
            self._emit_arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        else:
            self._value.append(text)

    def _end_value(self) -> None:
        self._emit_arguments('"' if self._value is None else _as_json("".join(self._value)))


_INNER = (PARAMETER, END_OF_FUNCTION, CLOSE)


def _held_in_value(text: str) -> int:
    """How much of a value's end may be the closing tag, with the line feed before it."""
    return partial_length(text, ("\n" + END_OF_PARAMETER, END_OF_PARAMETER))


def properties_of(tool: ToolDefinition) -> Mapping[str, Any]:
    """The schemas of a tool's arguments, by name."""
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def is_text(schema: Any) -> bool:
    """Whether the value of such a property is a string, as it is where nothing is said."""
    if not isinstance(schema, Mapping):
        return True
    if isinstance(choices := schema.get("enum"), list):
        return all(isinstance(choice, str) for choice in choices)
    return schema.get("type", "string") == "string" and not schema.keys() & _COMPOSED


_COMPOSED = {"$ref", "allOf", "anyOf", "oneOf"}


def _as_json(text: str) -> str:
    """A value as JSON; what is none becomes a string."""
    text = _PYTHON.get(text.strip(), text)
    try:
        return json.dumps(json.loads(text, parse_constant=_refuse_constant), ensure_ascii=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)


def _refuse_constant(name: str) -> None:
    """Python reads NaN and Infinity, which no other reader of JSON would take."""
    raise ValueError(name)
