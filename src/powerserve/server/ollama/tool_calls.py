"""Calls of tools as Ollama writes them: each whole, with its arguments as an object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from powerserve.server.content import ToolCallDelta


def split_calls(calls: Sequence[ToolCallDelta]) -> tuple[list[dict[str, Any]], str]:
    """The calls as objects, and the text of those whose arguments are none: they were cut off."""
    whole: list[dict[str, Any]] = []
    broken: list[str] = []
    for call in calls:
        arguments = _object(call.arguments)
        if arguments is None:
            broken.append(f'{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}')
        else:
            function = {"index": len(whole), "name": call.name, "arguments": arguments}
            whole.append({"id": call.call_id, "function": function})
    return whole, "\n".join(broken)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
