"""The draft model: its own KV cache, and what it would say next at the nodes of a token tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import FloatArray, Int32Array, Int64Array, LoadedModel
from powerserve.cache.cells import CellPool
from powerserve.cache.prefix import PrefixIndex
from powerserve.cache.sequence import SequenceCells
from powerserve.core.dtypes import DType
from powerserve.core.tracing import NO_TRACER, Tracer
from powerserve.executor.batching import Piece, build_batch, chain
from powerserve.executor.executor import Executor, cache_cells
from powerserve.speculative.step_timer import time_step
from powerserve.speculative.tree import TokenTree

TopLogits = tuple[Int64Array, npt.NDArray[np.float64]]
"""Ids of the most probable tokens and their logits, descending."""

_NEGLIGIBLE = 16.0  # a logit this far below the best has a probability below one in a million


@dataclass(slots=True, eq=False)
class DraftState:
    """What the draft model has computed of one sequence, and of the tree that is growing on it.

    The root of the tree is the last token in `cells`.
    """

    cells: SequenceCells
    node_cells: dict[int, int] = field(default_factory=dict)  # node -> cell, in order of computing


class DraftModel:
    """A model that guesses what the target, which has the same vocabulary, would say."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        num_cells: int,
        context_size: int,
        batch_size: int,
        kv_dtype: DType,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        """Args:
        model: the draft's weights; this object closes them.
        num_cells: tokens cached for all sequences.
        context_size: tokens of one sequence.
        batch_size: tokens of a prompt that are computed at once.
        kv_dtype: element type of the cache.
        tracer: sees the model's steps.
        """
        num_cells = cache_cells(model, num_cells)
        self.model = model
        self.batch_size = batch_size
        self.num_forwards = 0
        self._tracer = tracer
        self._context_size = context_size
        self._cache = model.new_cache(num_cells, kv_dtype)
        self._executor = Executor(model, self._cache)
        self._pool = CellPool(num_cells)
        self._prefixes = PrefixIndex(self._pool)

    @property
    def pool(self) -> CellPool:
        """The cells of the draft's cache."""
        return self._pool

    def new_state(self) -> DraftState:
        """The state of a sequence of which nothing is computed yet."""
        return DraftState(SequenceCells(self._pool, self._context_size))

    def num_missing(self, state: DraftState, token_ids: Int32Array) -> int:
        """How many of a sequence's tokens have to be computed before it can be continued."""
        if not state.cells.length:
            self._reuse_prefix(state, token_ids)
        if state.cells.length == len(token_ids):  # a step that was interrupted comes again
            state.cells.truncate(len(token_ids) - 1)
        return len(token_ids) - state.cells.length

    def catch_up(self, state: DraftState, token_ids: Int32Array) -> FloatArray | None:
        """Compute missing tokens, at most a batch of them; logits [vocab] if that was all.

        None: there are more (call again for the next step), or the cache is full.
        """
        start = len(token_ids) - self.num_missing(state, token_ids)
        missing = token_ids[start : start + self.batch_size]
        cells = self._allocate(state, len(missing))
        if cells is None:
            return None
        positions = state.cells.next_positions(len(missing))
        last = np.array([len(missing) - 1], np.int32)
        piece = Piece(state.cells, missing, positions, cells, chain(len(missing)), last)
        (logits,) = self._run([piece], cells)
        state.cells.append(missing, cells)
        return logits if state.cells.length == len(token_ids) else None

    def run_nodes(
        self, nodes: Sequence[tuple[DraftState, TokenTree, list[int]]]
    ) -> list[FloatArray] | None:
        """Compute nodes whose parents are computed: logits [nodes, vocab] of each tree.

        None if the cache is full.
        """
        pieces: list[Piece] = []
        allocated: list[Int64Array] = []
        for state, tree, level in nodes:
            cells = self._allocate(state, len(level))
            if cells is None:
                self._release(allocated)
                return None
            allocated.append(cells)
            pieces.append(_level(state, tree, level, cells))
        logits = self._run(pieces, *allocated)
        for (state, _, level), cells in zip(nodes, allocated, strict=True):
            state.node_cells.update(zip(level, cells.tolist(), strict=True))
        stops = np.cumsum([len(level) for _, _, level in nodes])
        return np.split(logits, stops[:-1])

    def keep(self, state: DraftState, tree: TokenTree, path: Sequence[int]) -> None:
        """Continue the sequence with the nodes that the target accepted, and drop the others."""
        computed = [node for node in path if node in state.node_cells]
        kept = np.array([state.node_cells[node] for node in computed], np.int64)
        allocated = np.array(list(state.node_cells.values()), np.int64)
        tokens = np.array([tree.token_ids[node] for node in computed], np.int32)
        state.cells.keep(tokens, kept, allocated, self._cache.copy)
        state.node_cells.clear()

    def discard(self, state: DraftState) -> None:
        """Drop every node of a tree that will not be verified."""
        self._release([np.array(list(state.node_cells.values()), np.int64)])
        state.node_cells.clear()

    def release(self, state: DraftState) -> None:
        """Give a sequence's cells back; what it computed may serve a later one."""
        self.discard(state)
        self._prefixes.insert(state.cells.token_ids, state.cells.cells)
        state.cells.release()

    def time_step(self, num_tokens: int, num_context: int) -> float:
        """Seconds of a step, for the cost curve."""
        self._prefixes.free_cells(num_tokens)
        return time_step(self._executor, self._pool, num_tokens, num_context)

    def clear_prefixes(self) -> None:
        """Forget what earlier sequences computed."""
        self._prefixes.clear()

    def close(self) -> None:
        """Release cache, graphs and weights."""
        self._executor.close()
        self._cache.close()
        self.model.close()

    def _reuse_prefix(self, state: DraftState, token_ids: Int32Array) -> None:
        cells = self._prefixes.find(token_ids, len(token_ids) - 1)
        state.cells.append(token_ids[: len(cells)], cells)
        state.cells.reserve(len(token_ids))

    def _allocate(self, state: DraftState, count: int) -> Int64Array | None:
        if self._pool.num_free < count:
            self._prefixes.free_cells(count)
        first = max(state.node_cells.values()) + 1 if state.node_cells else None
        return state.cells.allocate(count) if first is None else self._pool.allocate(count, first)

    def _run(self, pieces: Sequence[Piece], *allocated: Int64Array) -> FloatArray:
        try:
            batch = build_batch(pieces)
            with self._tracer.span("backend", tokens=len(batch.token_ids)):
                logits = self._executor.run(batch)
        except BaseException:
            self._release(allocated)
            raise
        self.num_forwards += 1
        return logits

    def _release(self, allocated: Sequence[Int64Array]) -> None:
        for cells in allocated:
            self._pool.release(cells)


def _level(state: DraftState, tree: TokenTree, nodes: list[int], cells: Int64Array) -> Piece:
    """Nodes of a tree, whose ancestors below the root are computed but not confirmed."""
    depths = np.array([tree.depths[node] for node in nodes], np.int32)
    ancestors = np.full((len(nodes), max(int(depths.max()) - 1, 1)), -1, np.int64)
    for row, node in enumerate(nodes):
        path = tree.path(tree.parents[node])
        ancestors[row, : len(path)] = [state.node_cells[each] for each in path]
    return Piece(
        state.cells,
        np.array([tree.token_ids[node] for node in nodes], np.int32),
        depths + np.int32(state.cells.length - 1),
        cells,
        np.full(len(nodes), -1, np.int32),
        np.arange(len(nodes), dtype=np.int32),
        ancestors,
    )


def top_logits(logits: FloatArray, count: int, vocab_size: int) -> TopLogits:
    """The `count` highest logits of tokens below `vocab_size`."""
    logits = logits[:vocab_size]
    cut = logits.max() - _NEGLIGIBLE
    ids = np.flatnonzero(logits > cut)
    values = logits[ids].astype(np.float64)
    order = np.argsort(-values, kind="stable")[:count]
    return ids[order], values[order]
