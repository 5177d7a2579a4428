"""Calls of earlier turns in the form that a template expects them in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

# `+ call['arguments']`, but not `+ call['arguments'] | tojson`: what joins texts needs a text.
_JOINED = re.compile(r"\+\s*[\w.\[\]'\"]*arguments(?!['\"\]]*\s*\|)")
_NONE_WITH_CALLS = re.compile(r"content(?:'\]|\"\])? is none")


def with_calls_as_expected(message: Message, source: str) -> Message:
    """The message as the template with this source reads it; unchanged where it calls nothing.

    Most templates write arguments with `tojson`, which would put JSON text into quotes once more,
    so they get values; DeepSeek's join texts. DeepSeek's also know a call by its missing content,
    for which others get an empty text.
    """
    calls = message.get("tool_calls")
    if not calls or not isinstance(calls, Sequence) or isinstance(calls, str):
        return message
    as_text = _JOINED.search(source) is not None
    adapted = {**message, "tool_calls": [_adapted(call, as_text=as_text) for call in calls]}
    if not message.get("content") and _NONE_WITH_CALLS.search(source):
        adapted["content"] = None
    return adapted


def _adapted(call: Any, *, as_text: bool) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    convert = _text if as_text else _value
    return {**call, "function": {**function, "arguments": convert(function["arguments"])}}


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _value(arguments: Any) -> Any:
    """What JSON text says; a model may have written anything, which the template gets as it is."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments
