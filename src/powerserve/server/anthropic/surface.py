"""Anthropic's routes."""

from __future__ import annotations

from functools import partial

from powerserve.server.anthropic.errors import STATUSES, error_body, error_frame
from powerserve.server.anthropic.messages import count_tokens, messages
from powerserve.server.anthropic.models import list_models, show_model
from powerserve.server.serving import Serving
from powerserve.server.surface import Operation, Surface

_VERSION = "anthropic-version"  # the header that tells these clients from OpenAI's


def anthropic_surface(serving: Serving) -> Surface:
    """The family; two of its paths are OpenAI's as well."""
    list_all, show = partial(list_models, serving), partial(show_model, serving)
    return Surface(
        "anthropic",
        (
            Operation("POST", "/v1/messages", partial(messages, serving)),
            Operation("POST", "/v1/messages/count_tokens", partial(count_tokens, serving)),
            Operation("GET", "/v1/models", list_all, header=_VERSION),
            Operation("GET", "/v1/models/{name:path}", show, header=_VERSION),
        ),
        error_body,
        error_frame,
        STATUSES,
    )
