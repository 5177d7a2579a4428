"""One vector for a text: the mean of the model's last hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import Executor, cache_cells
from powerserve.model.decoder import HIDDEN

CHUNK_SIZE = 64  # tokens; running answers wait that long


class TextEmbedding:
    """Computes the embedding of one text, chunk by chunk, so that others can have turns.

    The hidden states behind the final norm, those that the output layer gets, are averaged over
    all tokens and scaled to length one. It has a cache of its own while it lives.
    """

    def __init__(self, model: LoadedModel, token_ids: Sequence[int], kv_dtype: DType) -> None:
        """Raises UsageError for a text without tokens, or with one that does not exist."""
        if not token_ids:
            raise UsageError("the text to embed is empty")
        if min(token_ids) < 0 or max(token_ids) >= model.config.vocab_size:
            raise UsageError(f"the text has a token id outside 0 to {model.config.vocab_size - 1}")
        self._tokens = np.array(token_ids, np.int32)
        self._done = 0
        self._sum = np.zeros(model.config.embed_dim, np.float64)
        self._cache = model.new_cache(cache_cells(model, len(token_ids)), kv_dtype)
        self._executor = Executor(model, self._cache, has_logits=False)

    def advance(self) -> FloatArray | None:
        """Compute the next chunk; the vector, float32 [embed_dim], after the last one."""
        chunk = self._tokens[self._done : self._done + CHUNK_SIZE]
        self._executor.run(chain_batch(chunk, self._done))
        hidden = self._executor.observed(HIDDEN).reshape(-1, len(self._sum))
        self._sum += hidden[: len(chunk)].sum(axis=0, dtype=np.float64)  # the rest is padding
        self._done += len(chunk)
        if self._done < len(self._tokens):
            return None
        return (self._sum / np.linalg.norm(self._sum)).astype(np.float32)

    def close(self) -> None:
        """Release the cache."""
        self._executor.close()
        self._cache.close()
