"""Ollama's routes."""

from __future__ import annotations

from functools import partial

from powerserve.server.errors import ApiError, ErrorKind
from powerserve.server.ollama.chat import chat
from powerserve.server.ollama.embeddings import embed, embeddings
from powerserve.server.ollama.errors import error_body, error_frame
from powerserve.server.ollama.generate import generate
from powerserve.server.ollama.models import Models, version
from powerserve.server.ollama.pull import Pulls
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Handler, Operation, Reply, Surface

_AT_HOME = "clients cannot change models here; on the server, "


def ollama_surface(serving: Serving) -> Surface:
    """The family."""
    models, pulls = Models(serving), Pulls(serving)
    return Surface(
        "ollama",
        (
            Operation("POST", "/api/chat", partial(chat, serving)),
            Operation("POST", "/api/generate", partial(generate, serving)),
            Operation("POST", "/api/embed", partial(embed, serving)),
            Operation("POST", "/api/embeddings", partial(embeddings, serving)),
            Operation("GET", "/api/tags", models.tags),
            Operation("POST", "/api/show", models.show),
            Operation("GET", "/api/ps", models.loaded),
            Operation("GET", "/api/version", partial(version, serving)),
            Operation("POST", "/api/pull", pulls.pull, is_timed=False),
            *_refused_operations(),
        ),
        error_body,
        error_frame,
    )


def _refused_operations() -> tuple[Operation, ...]:
    return (
        Operation("DELETE", "/api/delete", _forbidden("`powerserve rm` removes one")),
        Operation("POST", "/api/copy", _forbidden("copy the file in the store")),
        Operation("POST", "/api/create", _forbidden("`powerserve convert` makes one")),
        Operation("POST", "/api/push", _forbidden("use the tools of the hub you publish on")),
    )


def _forbidden(advice: str) -> Handler:
    async def refuse(call: Call) -> Reply:
        raise ApiError(ErrorKind.PERMISSION, _AT_HOME + advice)

    return refuse
