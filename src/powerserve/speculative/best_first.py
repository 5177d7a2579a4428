"""Growing a token tree as the original did: one node at a time, the most probable first.

The most probable candidate becomes a node; if it is worth it, the draft model computes it, and its
own candidates join the queue. The tree ends at a fixed size, whatever a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np

from powerserve.backend.base import FloatArray
from powerserve.speculative.draft import DraftModel, DraftState, TopLogits, top_logits
from powerserve.speculative.options import TreeParams
from powerserve.speculative.tree import ROOT, TokenTree

BestTokens = Callable[[int], TopLogits | None]
"""node -> at least the `top_k` best tokens after it; None if that cannot be computed now."""


@dataclass(order=True, slots=True)
class _Candidate:
    sort_key: tuple[float, int]  # (-cumulative probability, order of arrival)
    token_id: int = field(compare=False)
    parent: int = field(compare=False)
    probability: float = field(compare=False)  # if the parent is accepted


class BestFirstGrowth:
    """Grows one tree. `expandable` candidates may be computed, `leaves` only fill the tree."""

    def __init__(self, params: TreeParams, *, vocab_size: int, stop_ids: Collection[int]) -> None:
        """Args:
        params: the original's parameters.
        vocab_size: of the target; the draft's further tokens are not proposed.
        stop_ids: tokens that nothing follows.
        """
        self._params = params
        self._vocab_size = vocab_size
        self._stop_ids = stop_ids
        self._expandable: list[_Candidate] = []
        self._leaves: list[_Candidate] = []
        self._num_candidates = 0

    def grow(
        self, tree: TokenTree, root_logits: FloatArray, draft: DraftModel, state: DraftState
    ) -> None:
        """Fill the tree, whose root the draft model has just computed."""

        def best_tokens(node: int) -> TopLogits | None:
            if node == ROOT:
                logits = root_logits
            else:
                computed = draft.run_nodes([(state, tree, [node])])
                if computed is None:
                    return None
                logits = computed[0][0]
            return top_logits(logits, self._params.top_k, self._vocab_size)

        self.grow_from(tree, best_tokens)

    def grow_from(self, tree: TokenTree, best_tokens: BestTokens) -> None:
        """Fill the tree with what `best_tokens` says, which is asked about the root first."""
        if not self._expand(tree, ROOT, best_tokens):
            return
        while len(tree) < self._params.draft_batch_size and (self._expandable or self._leaves):
            is_leaf = not self._expandable
            candidate = heappop(self._leaves if is_leaf else self._expandable)
            node = tree.add(candidate.parent, candidate.token_id, candidate.probability)
            expands = not is_leaf and self._is_worth_expanding(tree, node)
            if expands and not self._expand(tree, node, best_tokens):
                return

    def _is_worth_expanding(self, tree: TokenTree, node: int) -> bool:
        params = self._params
        waiting = len(self._expandable) // 2 if params.early_stop else 0
        return (
            tree.token_ids[node] not in self._stop_ids
            and len(tree) + waiting < params.draft_batch_size
            and tree.probabilities[node] >= params.min_prob
            and tree.is_extendable(node)
        )

    def _expand(self, tree: TokenTree, node: int, best_tokens: BestTokens) -> bool:
        """Queue the candidates that may follow a node; few of them are expandable themselves.

        False: it is not known what follows.
        """
        best = best_tokens(node)
        if best is None:
            return False
        params = self._params
        ids, values = best[0][: params.top_k], best[1][: params.top_k]
        weights = np.exp((values - values[0]) / params.temperature)
        shares = weights / weights.sum()
        threshold = shares[0] * params.p_base
        for rank, (token_id, share) in enumerate(zip(ids.tolist(), shares.tolist(), strict=True)):
            is_leaf = rank >= params.max_fan_out or share < threshold
            key = (-tree.probabilities[node] * share, self._num_candidates)
            self._num_candidates += 1
            queue = self._leaves if is_leaf else self._expandable
            heappush(queue, _Candidate(key, token_id, node, share))
        return True
