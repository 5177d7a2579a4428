"""What a draft model would say in the neighbourhood of a known answer.

Whatever the parameters of a tree, its nodes stand for few different beginnings: a part of the
answer, and perhaps some tokens that depart from it. So the draft model's predictions are kept, and
a search computes most of them only for its first points.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from powerserve.backend.base import FloatArray, LoadedModel
from powerserve.core.dtypes import DType
from powerserve.evaluate.tree_search.answers import KnownAnswer
from powerserve.executor.chain import chain_batch
from powerserve.executor.executor import Executor, cache_cells
from powerserve.speculative.draft import TopLogits, top_logits

BATCH_SIZE = 64  # tokens of prompt and answer that are computed at once


class Beginning(NamedTuple):
    """The first `length` tokens of the answer, followed by tokens that it does not have there."""

    length: int
    detour: tuple[int, ...] = ()


class DraftPredictions:
    """The draft model's most probable tokens after any beginning; each is computed once.

    Cells 0 … n - 1 of the cache hold prompt and answer. A detour is computed in the cells behind
    them, and the next one overwrites it.
    """

    def __init__(
        self,
        model: LoadedModel,
        answer: KnownAnswer,
        *,
        num_best: int,
        max_detour: int,
        vocab_size: int,
        kv_dtype: DType,
    ) -> None:
        """Compute the draft model's predictions along the answer.

        Args:
            model: the draft model, which must outlive this object.
            answer: what the target says.
            num_best: tokens that are kept of each prediction.
            max_detour: the longest detour that will be asked for.
            vocab_size: of the target; the draft's further tokens are left out.
            kv_dtype: of the draft's cache.
        """
        self.answer = answer
        self.vocab_size = vocab_size
        self._num_best = num_best
        self._tokens = np.array(answer.prompt_ids + answer.token_ids, np.int32)
        num_cells = cache_cells(model, len(self._tokens) + max_detour)
        self._cache = model.new_cache(num_cells, kv_dtype)
        self._executor = Executor(model, self._cache)
        try:
            along = enumerate(self._along_the_answer(), 1)
            self._known = {Beginning(length): best for length, best in along}
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """How many predictions are known."""
        return len(self._known)

    def after(self, beginning: Beginning) -> TopLogits:
        """The tokens that the draft thinks most probable after a beginning of at least 1 token."""
        best = self._known.get(beginning)
        if best is None:
            best = self._known[beginning] = self._best(self._after_detour(beginning))
        return best

    def extended(self, beginning: Beginning, token_id: int) -> Beginning:
        """The beginning with one more token."""
        length, detour = beginning
        if not detour and self.answer.token_ids[length : length + 1] == (token_id,):
            return Beginning(length + 1)
        return Beginning(length, (*detour, token_id))

    def close(self) -> None:
        """Release the draft's cache and graphs."""
        self._executor.close()
        self._cache.close()

    def _along_the_answer(self) -> Iterator[TopLogits]:
        """The predictions after each token of the answer."""
        first_row = len(self.answer.prompt_ids)
        for start in range(0, len(self._tokens), BATCH_SIZE):
            tokens = self._tokens[start : start + BATCH_SIZE]
            batch = chain_batch(tokens, start)
            for row, logits in enumerate(self._executor.run(batch), start):
                if row >= first_row:
                    yield self._best(logits)

    def _after_detour(self, beginning: Beginning) -> FloatArray:
        detour = np.array(beginning.detour, np.int32)
        num_context = len(self.answer.prompt_ids) + beginning.length
        last_row = np.array([len(detour) - 1], np.int32)
        batch = chain_batch(detour, num_context, last_row, first_cell=len(self._tokens))
        logits: FloatArray = self._executor.run(batch)[0]
        return logits

    def _best(self, logits: FloatArray) -> TopLogits:
        return top_logits(logits, self._num_best, self.vocab_size)
