"""/v1/models in Anthropic's shape."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from powerserve.server.catalogue import KnownModel
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Reply


async def list_models(serving: Serving, call: Call) -> Reply:
    """All models that can be asked for, on one page."""
    models = [_model(each) for each in await asyncio.to_thread(serving.pool.catalogue.known)]
    ends = [models[0]["id"], models[-1]["id"]] if models else [None, None]
    return Reply({"data": models, "has_more": False, "first_id": ends[0], "last_id": ends[1]})


async def show_model(serving: Serving, call: Call) -> Reply:
    """One of them."""
    name = call.path["name"]
    for model in await asyncio.to_thread(serving.pool.catalogue.known):
        if model.name == name:
            return Reply(_model(model))
    raise ApiError(ErrorKind.NOT_FOUND, f"there is no model {name!r}")


def _model(model: KnownModel) -> dict[str, Any]:
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": datetime.fromtimestamp(model.created, UTC),
        "lifecycle": "active",
    }
