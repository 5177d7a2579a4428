"""All surfaces and middleware as one ASGI application."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from powerserve.server.endpoint import Endpoint
from powerserve.server.openai.surface import openai_surface
from powerserve.server.operations import operations_surface
from powerserve.server.serving import Serving
from powerserve.server.surface import Surface


def create_app(serving: Serving) -> ASGIApp:
    """The server's application; `serving` is closed by whoever made it."""
    surfaces = [operations_surface(serving), openai_surface(serving)]
    return Starlette(routes=_routes(surfaces, serving))


def _routes(surfaces: Sequence[Surface], serving: Serving) -> list[Route]:
    return [
        Route(operation.path, Endpoint(surface, operation, serving), methods=[operation.method])
        for surface in surfaces
        for operation in surface.operations
    ]
