"""Texts to embed, one after the other, between the engine's steps."""

from __future__ import annotations

from powerserve.core.errors import PowerServeError
from powerserve.engine.embedding import TextEmbedding
from powerserve.engine.loader import LoadedEngine
from powerserve.server.events import Embedded, Event, Failed


class EmbeddingQueue:
    """Belongs to the engine's thread. Only the text whose turn it is takes memory."""

    def __init__(self, loaded: LoadedEngine) -> None:
        self._loaded = loaded
        self._waiting: dict[int, list[int]] = {}  # token ids by key, in order of arrival
        self._current: tuple[int, TextEmbedding] | None = None

    def __bool__(self) -> bool:
        return bool(self._waiting) or self._current is not None

    def add(self, key: int, token_ids: list[int]) -> None:
        """Queue a text."""
        self._waiting[key] = token_ids

    def cancel(self, key: int) -> bool:
        """Forget a text; whether it was there."""
        if self._current is not None and self._current[0] == key:
            self.close()
            return True
        return self._waiting.pop(key, None) is not None

    def advance(self) -> list[tuple[int, Event]]:
        """Compute a chunk of the oldest text; its event if that was the last one."""
        if self._current is None and self._waiting:
            key = next(iter(self._waiting))
            try:
                self._current = key, self._begin(self._waiting.pop(key))
            except PowerServeError as error:
                return [(key, Failed(error))]
        if self._current is None:
            return []
        key, embedding = self._current
        vector = embedding.advance()
        if vector is None:
            return []
        self.close()
        return [(key, Embedded(vector))]

    def close(self) -> None:
        """Release what the current text holds."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    def _begin(self, token_ids: list[int]) -> TextEmbedding:
        return TextEmbedding(self._loaded.model, token_ids, self._loaded.engine.config.kv_dtype)
