"""Requests that have nothing to answer: they load a model, or unload it."""

from __future__ import annotations

from typing import Any

from powerserve.server.ollama.fields import GenerationFields, model_name
from powerserve.server.ollama.lines import Part, Shape, stamp
from powerserve.server.serving import Serving


async def load_or_unload(serving: Serving, body: GenerationFields, shape: Shape) -> dict[str, Any]:
    """Load the model, or unload it if it shall be kept no longer; returns the answer's object."""
    if body.keep_alive_s == 0:
        await serving.pool.unload(model_name(body.model))
        reason = "unload"
    else:
        async with serving.pool.lease(model_name(body.model), keep_alive_s=body.keep_alive_s):
            reason = "load"
    return stamp(body.model) | shape(Part()) | {"done": True, "done_reason": reason}
