"""/v1/models."""

from __future__ import annotations

import asyncio
from typing import Any

from powerserve.server.catalogue import KnownModel
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Reply


async def list_models(serving: Serving, call: Call) -> Reply:
    """All models that can be asked for."""
    models = await asyncio.to_thread(serving.pool.catalogue.known)
    return Reply({"object": "list", "data": [_model(serving, model) for model in models]})


async def show_model(serving: Serving, call: Call) -> Reply:
    """One of them."""
    name = call.path["name"]
    for model in await asyncio.to_thread(serving.pool.catalogue.known):
        if model.name == name:
            return Reply(_model(serving, model))
    raise ApiError(ErrorKind.NOT_FOUND, f"there is no model {name!r}", code="model_not_found")


def _model(serving: Serving, model: KnownModel) -> dict[str, Any]:
    """OpenAI's fields, and whether an answer can begin at once."""
    loaded = any(model.name in runner.names for runner in serving.pool.runners)
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "PowerServe",
        "loaded": loaded,
    }
