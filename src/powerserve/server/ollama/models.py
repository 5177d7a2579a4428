"""/api/tags, /api/show, /api/ps, /api/version."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from powerserve import __version__
from powerserve.core.errors import PowerServeError
from powerserve.server.catalogue import Catalogue
from powerserve.server.model_pool import Resident
from powerserve.server.ollama.descriptions import (
    Description,
    Descriptions,
    capabilities,
    model_info,
    template_of,
)
from powerserve.server.ollama.fields import LATEST, model_name
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Reply

# Clients compare it with the version of Ollama that has what they need: this one's API is ours.
_API_VERSION = "0.12.11"
_FOR_EVER = timedelta(days=365 * 200)  # Ollama's client calls more than a century that


class ShowRequest(msgspec.Struct):
    """The body of /api/show; `name` is what older clients say."""

    model: str = ""
    name: str = ""
    verbose: bool = False


async def version(serving: Serving, call: Call) -> Reply:
    """The version of Ollama whose API this is, and our own."""
    return Reply({"version": _API_VERSION, "powerserve": __version__})


class Models:
    """Tells what models there are, and what is loaded."""

    def __init__(self, serving: Serving) -> None:
        self._pool = serving.pool
        self._descriptions = Descriptions()

    async def tags(self, call: Call) -> Reply:
        """All models that can be asked for."""
        return Reply({"models": await asyncio.to_thread(self._list, self._pool.catalogue)})

    async def show(self, call: Call) -> Reply:
        """One of them, in detail."""
        return Reply(await asyncio.to_thread(self._show, call.decode(ShowRequest)))

    async def loaded(self, call: Call) -> Reply:
        """Those that are in memory, and until when."""
        residents = self._pool.residents
        return Reply({"models": await asyncio.to_thread(self._residents, residents)})

    def _list(self, catalogue: Catalogue) -> list[dict[str, Any]]:
        models = []
        for known in catalogue.known():
            with suppress(PowerServeError, OSError):  # one broken file shall not hide the others
                description = self._descriptions.of(catalogue.find(known.name))
                modified = {"modified_at": description.modified}
                models.append(_entry(known.name, description) | modified)
        return models

    def _show(self, body: ShowRequest) -> dict[str, Any]:
        source = self._pool.catalogue.find(model_name(body.model or body.name))
        description = self._descriptions.of(source)
        template = template_of(source)
        info = model_info(source, description.num_parameters, verbose=body.verbose)
        return {
            "modelfile": f"FROM {source.name}\n",
            "parameters": "",
            "template": template,
            "license": str(info.get("general.license") or ""),
            "details": description.details(),
            "model_info": info,
            "capabilities": capabilities(template),
            "modified_at": description.modified,
        }

    def _residents(self, residents: list[Resident]) -> list[dict[str, Any]]:
        models = []
        for resident in residents:
            loaded = resident.runner.loaded
            with suppress(PowerServeError, OSError):  # deleted in the meantime
                entry = _entry(resident.runner.name, self._descriptions.of(loaded.source))
                entry |= {
                    "size": loaded.plan.total_bytes,
                    "size_vram": 0,
                    "context_length": loaded.plan.context_size,
                    "expires_at": datetime.now(UTC) + _remaining(resident),
                }
                models.append(entry)
        return models


def _entry(name: str, description: Description) -> dict[str, Any]:
    full_name = f"{name}{LATEST}"
    return {
        "name": full_name,
        "model": full_name,
        "size": description.size_bytes,
        "digest": description.digest,
        "details": description.details(),
    }


def _remaining(resident: Resident) -> timedelta:
    if resident.remaining_s is None:
        return _FOR_EVER
    return min(timedelta(seconds=min(resident.remaining_s, 1e9)), _FOR_EVER)
