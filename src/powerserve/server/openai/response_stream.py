"""A response, whole or as server-sent events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from powerserve.server.answer import Answer
from powerserve.server.content import Content
from powerserve.server.events import Ended, Usage
from powerserve.server.openai.fields import finish_reason
from powerserve.server.openai.response_output import Body, ResponseOutput
from powerserve.server.preparation import default_params
from powerserve.server.request import GenerationRequest
from powerserve.server.surface import sse_frame

REPORTED_SAMPLING = ("temperature", "top_p", "presence_penalty", "frequency_penalty")


class ResponseWriter:
    """Writes the response to one request; `base` holds the fields that are known beforehand."""

    def __init__(self, base: Body, request: GenerationRequest) -> None:
        self._base = base
        self._request = request
        self._output = ResponseOutput()
        self._number = 0

    async def whole(self, opening: AbstractAsyncContextManager[Answer]) -> Body:
        """The response when it has ended."""
        async with opening as answer:
            self._describe(answer)
            async for delta in answer.deltas():
                self._output.add(delta.content)
                if delta.ended is not None:
                    self._output.close(_status(delta.ended))
                    return self._ended(delta.ended)
        raise AssertionError("an answer always has an end")

    async def frames(self, opening: AbstractAsyncContextManager[Answer]) -> AsyncIterator[bytes]:
        """All events."""
        async with opening as answer:
            self._describe(answer)
            begun = self._base | {"status": "in_progress", "output": [], "usage": None}
            for kind in ("created", "in_progress"):
                yield self._frame({"type": f"response.{kind}", "response": begun})
            async for delta in answer.deltas():
                for event in self._events(delta.content, delta.ended):
                    yield self._frame(event)

    def _describe(self, answer: Answer) -> None:
        """Fill in what depends on the model: its name, and how the answer is sampled."""
        self._base["model"] = self._base["model"] or answer.runner.name
        (params,) = self._request.params(default_params(answer.runner.loaded), None)
        self._base |= {name: getattr(params, name) for name in REPORTED_SAMPLING}

    def _events(self, content: Content, ended: Ended | None) -> list[Body]:
        events = self._output.add(content)
        if ended is None:
            return events
        events += self._output.close(_status(ended))
        return [*events, {"type": f"response.{_status(ended)}", "response": self._ended(ended)}]

    def _ended(self, ended: Ended) -> Body:
        is_cut = _status(ended) == "incomplete"
        return self._base | {
            "status": _status(ended),
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._output.items,
            "usage": _usage(ended.usage),
        }

    def _frame(self, event: Body) -> bytes:
        numbered: dict[str, Any] = event | {"sequence_number": self._number}
        self._number += 1
        return sse_frame(numbered, event["type"])


def _status(ended: Ended) -> str:
    return "incomplete" if finish_reason(ended) == "length" else "completed"


def _usage(usage: Usage) -> Body:
    return {
        "input_tokens": usage.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.num_cached_tokens},
        "output_tokens": usage.num_generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.num_prompt_tokens + usage.num_generated,
    }
