"""The output layer on the NPU, from compiled LM heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.backend.qnn.chunks import LMHead
from powerserve.backend.qnn.splitting import Run, split

OutputLayer = Callable[[FloatArray], FloatArray]
"""Hidden states [N, D] before the final norm -> logits [N, vocab], valid until the next call."""


class NpuOutputLayer:
    """Runs the wanted rows, and no others, through LM heads of the sizes there are."""

    def __init__(self, heads: Mapping[int, LMHead]) -> None:
        self._heads = heads
        self._batch_sizes = sorted(heads)

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """See OutputLayer."""
        parts = [self._run(hidden, run) for run in split(len(hidden), self._batch_sizes)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, hidden: FloatArray, run: Run) -> FloatArray:
        head, length = self._heads[run.batch_size], run.stop - run.start
        head.hidden[:length] = hidden[run.start : run.stop]
        head.hidden[length:] = 0
        head.graph.run()
        logits: FloatArray = head.logits[:length]
        return logits if run.stop == len(hidden) and not run.start else logits.copy()
