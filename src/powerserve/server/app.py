"""All surfaces and middleware as one ASGI application."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from powerserve.server.anthropic.surface import anthropic_surface
from powerserve.server.body import BodyFirst
from powerserve.server.endpoint import Endpoint, error_reply
from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.ollama.surface import ollama_surface
from powerserve.server.openai.surface import openai_surface
from powerserve.server.operations import operations_surface
from powerserve.server.original import flat_errors
from powerserve.server.security import AccessControl, Guard
from powerserve.server.serving import Serving
from powerserve.server.surface import Operation, Surface
from powerserve.server.web.page import web_surface


def create_app(serving: Serving) -> ASGIApp:
    """The server's application; `serving` is closed by whoever made it."""
    surfaces = [openai_surface(serving), operations_surface(serving), web_surface()]
    if serving.settings.compat:
        surfaces = [flat_errors(surface) for surface in surfaces]
    surfaces += [anthropic_surface(serving), ollama_surface(serving)]

    def response(path: str, error: ApiError) -> Response:
        return _response(_surface_of(path, surfaces), error)

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return response(request.url.path, _routing_error(request, error))

    app = Starlette(routes=_routes(surfaces, serving), exception_handlers={HTTPException: refused})
    access = serving.settings.access
    guarded = AccessControl(app, Guard(access), _public_paths(surfaces), response)
    return BodyFirst(guarded, access)


class _Route(Route):
    """The route of an operation, which may depend on a header as well."""

    def __init__(self, operation: Operation, endpoint: Endpoint) -> None:
        super().__init__(operation.path, endpoint, methods=[operation.method])
        self.header = operation.header

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if self.header is not None and self.header not in Headers(scope=scope):
            return Match.NONE, {}
        return super().matches(scope)


def _routes(surfaces: Sequence[Surface], serving: Serving) -> list[_Route]:
    routes = [
        _Route(operation, Endpoint(surface, operation, serving))
        for surface in surfaces
        for operation in surface.operations
    ]
    return sorted(routes, key=lambda route: route.header is None)  # the first that fits is taken


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
            if operation.header is not None:
                continue  # the path is another family's
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
