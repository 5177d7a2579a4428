"""A step on the NPU: cut into runs of compiled sizes, each through all chunks, then the output."""

from __future__ import annotations

from threading import Event
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from powerserve.backend.base import (
    Batch,
    Executable,
    FloatArray,
    OperationTime,
    StepInterrupted,
)
from powerserve.backend.qnn.cache import QnnCache
from powerserve.backend.qnn.chunks import Chunk
from powerserve.backend.qnn.runtime.base import Array
from powerserve.backend.qnn.splitting import Run, split

if TYPE_CHECKING:
    from powerserve.backend.qnn.backend import QnnModel


class QnnExecutable(Executable):
    """Runs steps of any shape: what is compiled are the graphs, which the model holds."""

    def __init__(self, model: QnnModel, cache: QnnCache, interrupted: Event) -> None:
        """`interrupted`: set to stop steps between two graphs."""
        self._model = model
        self._cache = cache
        self._interrupted = interrupted
        self._hidden = np.empty((0, model.config.embed_dim), np.float32)

    def run(self, batch: Batch) -> FloatArray:
        return self._run(batch, _Stopwatch())

    def profile(self, batch: Batch) -> list[OperationTime]:
        stopwatch = _Stopwatch()
        self._run(batch, stopwatch)
        return stopwatch.times

    def observed(self) -> dict[str, FloatArray]:
        model = self._model
        name = model.placement.observed_name
        if name is None:
            return {}
        return {name: model.normed(self._hidden)}

    def _run(self, batch: Batch, stopwatch: _Stopwatch) -> FloatArray:
        model, rows = self._model, batch.output_rows
        self._cache.claim()
        embedded = model.embedding(batch.token_ids)
        stopwatch.lap("embedding", model.placement.embedding.table.name)
        self._hidden = np.empty((len(rows), model.config.embed_dim), np.float32)
        for run in split(len(batch.token_ids), model.batch_sizes):
            hidden = self._run_chunks(batch, embedded, run, stopwatch)
            first, stop = np.searchsorted(rows, (run.start, run.stop))
            self._hidden[first:stop] = hidden[rows[first:stop] - run.start]
        logits = model.output_layer(self._hidden)
        stopwatch.lap("output layer", model.placement.output.weight.name)
        return logits

    def _run_chunks(
        self, batch: Batch, embedded: FloatArray, run: Run, stopwatch: _Stopwatch
    ) -> Array:
        """The hidden states after the last layer [B, D]; K and V of the run go into the cache."""
        chunks = self._model.graphs.chunks[run.batch_size]
        cells = batch.cells[run.start : run.stop]
        hidden: Array = embedded[run.start : run.stop]
        self._write_inputs(chunks[0], batch, run)
        stopwatch.lap("positions and mask")
        for index, chunk in enumerate(chunks):
            if self._interrupted.is_set():
                raise StepInterrupted
            chunk.hidden_in[: len(hidden)] = hidden
            chunk.hidden_in[len(hidden) :] = 0
            chunk.run()
            hidden = chunk.hidden_out
            stopwatch.lap(f"{chunk.name}, batch {run.batch_size}")
            self._cache.store(index, cells, chunk.new)
            stopwatch.lap("cache")
        return hidden

    def _write_inputs(self, chunk: Chunk, batch: Batch, run: Run) -> None:
        """What all chunks of a run get; their inputs of these names are one buffer."""
        model = self._model
        positions = batch.positions[run.start : run.stop] + np.int32(model.num_front)
        model.positions.write(positions, chunk.cos, chunk.sin)
        model.bias.write(chunk.bias, batch, run)


class _Stopwatch:
    """Adds up times by what they were for."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str], float] = {}
        self._last_s = perf_counter()

    def lap(self, operation: str, weight: str = "") -> None:
        """Count what passed since the last lap."""
        now_s = perf_counter()
        key = (operation, weight)
        self._seconds[key] = self._seconds.get(key, 0.0) + now_s - self._last_s
        self._last_s = now_s

    @property
    def times(self) -> list[OperationTime]:
        """One entry for each operation."""
        return [OperationTime(*key, seconds) for key, seconds in self._seconds.items()]
