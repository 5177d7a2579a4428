"""All surfaces and middleware as one ASGI application."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from powerserve.server.endpoint import Endpoint, error_reply
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.openai.surface import openai_surface
from powerserve.server.operations import operations_surface
from powerserve.server.original import flat_errors
from powerserve.server.security import AccessControl, Guard
from powerserve.server.serving import Serving
from powerserve.server.surface import Surface


def create_app(serving: Serving) -> ASGIApp:
    """The server's application; `serving` is closed by whoever made it."""
    surfaces = [openai_surface(serving), operations_surface(serving)]
    if serving.settings.compat:
        surfaces = [flat_errors(surface) for surface in surfaces]

    def response(path: str, error: ApiError) -> Response:
        return _response(_surface_of(path, surfaces), error)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response(request.url.path, _routing_error(request, error))

    app = Starlette(routes=_routes(surfaces, serving), exception_handlers={HTTPException: refused})
    return AccessControl(app, Guard(serving.settings.access), _public_paths(surfaces), response)


def _routes(surfaces: Sequence[Surface], serving: Serving) -> list[Route]:
    return [
        Route(operation.path, Endpoint(surface, operation, serving), methods=[operation.method])
        for surface in surfaces
        for operation in surface.operations
    ]


def _public_paths(surfaces: Sequence[Surface]) -> frozenset[str]:
    return frozenset(
        operation.path
        for surface in surfaces
        for operation in surface.operations
        if operation.is_public
    )


def _surface_of(path: str, surfaces: Sequence[Surface]) -> Surface:
    """The family a path belongs to; the first one for a path that does not exist."""
    for surface in surfaces:
        for operation in surface.operations:
            beginning, _, parameter = operation.path.partition("{")
            if path == beginning or (parameter and path.startswith(beginning)):
                return surface
    return surfaces[0]


def _routing_error(request: Request, error: HTTPException) -> ApiError:
    asked_for = f"{request.method} {request.url.path}"
    if error.status_code == ErrorKind.METHOD.value:
        return ApiError(ErrorKind.METHOD, f"{asked_for} is not possible; try another method")
    return ApiError(ErrorKind.NOT_FOUND, f"there is nothing at {asked_for}")


def _response(surface: Surface, error: ApiError) -> Response:
    reply = error_reply(surface, error)
    return Response(
        reply.encoded(), reply.status, headers=dict(reply.headers), media_type=reply.content_type
    )
