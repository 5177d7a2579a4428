"""One model's prefixes from one run of the server to the next."""

from __future__ import annotations

import logging

from powerserve.cache.prefix_store import PrefixFolder, PrefixStore
from powerserve.core.errors import PowerServeError
from powerserve.engine.loader import LoadedEngine

logger = logging.getLogger("powerserve.server")


class SavedPrefixes:
    """Restores and saves; what goes wrong is a warning, for the server works without them."""

    def __init__(self, loaded: LoadedEngine, folder: PrefixFolder | None) -> None:
        """Without a folder nothing is ever saved."""
        self._loaded = loaded
        self._store = None if folder is None else PrefixStore(folder, loaded.identity)

    def restore(self) -> None:
        """Before the first step."""
        if self._store is None:
            return
        try:
            num_tokens = self._loaded.engine.restore_prefixes(self._store)
        except PowerServeError as error:
            logger.warning("%s", error)
        else:
            logger.info("restored %d tokens of prompts for %s", num_tokens, self._name)

    def save(self) -> None:
        """After the last step."""
        if self._store is None:
            return
        try:
            num_tokens = self._loaded.engine.save_prefixes(self._store)
        except PowerServeError as error:
            logger.warning("%s", error)
        else:
            logger.info("saved %d tokens of prompts of %s", num_tokens, self._name)

    @property
    def _name(self) -> str:
        return self._loaded.source.name
