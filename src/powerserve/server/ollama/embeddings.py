"""/api/embed, and /api/embeddings, its older form."""

from __future__ import annotations

from time import monotonic

import msgspec
import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.server.bounds import check_texts
from powerserve.server.errors import invalid
from powerserve.server.ollama.durations import keep_alive_seconds, nanoseconds
from powerserve.server.ollama.fields import model_name
from powerserve.server.request import TextPrompt
from powerserve.server.serving import Serving
from powerserve.server.surface import Call, Reply


class EmbedFields(msgspec.Struct, kw_only=True):
    """Fields that both have."""

    model: str = ""
    keep_alive: str | float | None = None

    async def vectors(
        self, serving: Serving, texts: list[str], *, truncate: bool
    ) -> tuple[list[FloatArray], int]:
        """A vector for each text and the number of tokens; none for no text. Raises ApiError."""
        name, keep_alive_s = model_name(self.model), keep_alive_seconds(self.keep_alive)
        if not texts:
            async with serving.pool.lease(name, keep_alive_s=keep_alive_s):
                return [], 0
        prompts = [TextPrompt(text) for text in texts]
        return await serving.embed(name, prompts, truncate=truncate, keep_alive_s=keep_alive_s)


class EmbedRequest(EmbedFields, kw_only=True):
    """The body of /api/embed."""

    input: str | list[str] = ""
    truncate: bool | None = None  # texts that are too long; they are unless refused
    dimensions: int | None = None


class EmbeddingsRequest(EmbedFields, kw_only=True):
    """The body of /api/embeddings."""

    prompt: str = ""


async def embed(serving: Serving, call: Call) -> Reply:
    """A vector of length one for each text; without texts, load the model."""
    began = monotonic()
    body = call.decode(EmbedRequest)
    texts = [body.input] if isinstance(body.input, str) and body.input else list(body.input)
    check_texts(len(texts), "input")
    if body.dimensions is not None and body.dimensions < 0:
        raise invalid("dimensions must not be negative", "dimensions")
    truncate = body.truncate is not False
    vectors, num_tokens = await body.vectors(serving, texts, truncate=truncate)
    return Reply(
        {
            "model": body.model,
            "embeddings": [_shortened(vector, body.dimensions).tolist() for vector in vectors],
            "total_duration": nanoseconds(monotonic() - began),
            "prompt_eval_count": num_tokens,
        }
    )


async def embeddings(serving: Serving, call: Call) -> Reply:
    """The vector of one text."""
    body = call.decode(EmbeddingsRequest)
    texts = [body.prompt] if body.prompt else []
    vectors, _ = await body.vectors(serving, texts, truncate=True)
    return Reply({"embedding": vectors[0].tolist() if vectors else []})


def _shortened(vector: FloatArray, num_dimensions: int | None) -> FloatArray:
    """The first dimensions, again of length one."""
    if not num_dimensions or num_dimensions >= len(vector):
        return vector
    first = vector[:num_dimensions]
    return first / max(float(np.linalg.norm(first)), 1e-12)
