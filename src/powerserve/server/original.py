"""`--compat`: what clients of the original server may depend on, beyond its paths.

Errors have a flat body, a missing `model` is an error, `max_tokens` is 16 unless given and means
steps, of which the first yields no text, and usage counts those steps and one prompt token less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from powerserve.server.errors import ApiError, invalid
from powerserve.server.events import Usage
from powerserve.server.openai.errors import error_type
from powerserve.server.surface import Surface, sse_frame

DEFAULT_MAX_TOKENS = 16  # steps


def flat_errors(surface: Surface) -> Surface:
    """The same family, wording its errors as the original does."""
    return replace(surface, error_body=_flat_body, error_frame=_flat_frame)


def generated_tokens(model: str, max_tokens: int | None, compat: bool) -> int | None:
    """The tokens to generate for a request's `max_tokens`. Raises ApiError without a model."""
    if not compat:
        return max_tokens
    if not model:
        raise invalid("the field `model` is required", "model")
    steps = DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens
    return max(0, steps - 1)


def reported_usage(usage: Usage, compat: bool) -> Usage:
    """The counts to report; the original's are a prompt token less and a step more."""
    if not compat:
        return usage
    return replace(
        usage,
        num_prompt_tokens=usage.num_prompt_tokens - 1,
        num_generated=usage.num_generated + 1,
    )


def _flat_body(error: ApiError) -> dict[str, Any]:
    return {"code": error.status, "message": error.message, "type": error_type(error)}


def _flat_frame(error: ApiError) -> bytes:
    return sse_frame(_flat_body(error))
