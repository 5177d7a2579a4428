"""OpenAI's routes."""

from __future__ import annotations

from functools import partial

from powerserve.server.openai.chat import chat_completions
from powerserve.server.openai.completions import completions
from powerserve.server.openai.embeddings import embeddings
from powerserve.server.openai.errors import error_body, error_frame
from powerserve.server.openai.models import list_models, show_model
from powerserve.server.openai.responses import responses
from powerserve.server.serving import Serving
from powerserve.server.surface import Operation, Surface


def openai_surface(serving: Serving) -> Surface:
    """The family; each path exists with and without /v1, as in the original."""
    chat, complete = partial(chat_completions, serving), partial(completions, serving)
    return Surface(
        "openai",
        (
            Operation("POST", "/v1/chat/completions", chat),
            Operation("POST", "/chat/completions", chat),
            Operation("POST", "/v1/completions", complete),
            Operation("POST", "/completions", complete),
            Operation("POST", "/completion", complete),
            Operation("POST", "/v1/embeddings", partial(embeddings, serving)),
            Operation("POST", "/v1/responses", partial(responses, serving)),
            Operation("GET", "/v1/models", partial(list_models, serving)),
            Operation("GET", "/v1/models/{name:path}", partial(show_model, serving)),
        ),
        error_body,
        error_frame,
    )
