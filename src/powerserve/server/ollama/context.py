"""`context` of /api/generate: the conversation so far, kept by the client and sent back.

Ollama calls it an encoding of the conversation, which clients return as it is. Its own is a prompt
in tokens, to which nothing can be added once a template has closed it; ours are the bytes of the
messages as JSON, so any model's template can render them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from powerserve.server.errors import invalid


class Turn(msgspec.Struct):
    """A message."""

    role: Literal["system", "user", "assistant"]
    content: str


def encode_context(turns: Sequence[Turn]) -> list[int]:
    """The numbers that stand for a conversation."""
    return list(msgspec.json.encode(turns))


def decode_context(context: Sequence[int]) -> list[Turn]:
    """The conversation that the numbers stand for. Raises ApiError for those of another server."""
    try:
        return msgspec.json.decode(bytes(context), type=list[Turn])
    except (ValueError, msgspec.MsgspecError):
        raise invalid("context is not one that this server has returned", "context") from None
