"""/v1/embeddings."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec

from powerserve.backend.base import FloatArray
from powerserve.server.errors import invalid
from powerserve.server.openai.prompts import text_prompts
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Reply


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body."""

    input: str | list[str | int | list[int]]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


async def embeddings(serving: Serving, call: Call) -> Reply:
    """A vector of length one for each text."""
    body = call.decode(EmbeddingRequest)
    texts = text_prompts(body.input, "input")
    vectors, num_tokens = await serving.embed(body.model, texts)
    if body.dimensions not in (None, len(vectors[0])):
        raise invalid(f"this model's embeddings have {len(vectors[0])} dimensions", "dimensions")
    return Reply(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _written(body, vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": body.model,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        }
    )


def _written(body: EmbeddingRequest, vector: FloatArray) -> Any:
    if body.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
