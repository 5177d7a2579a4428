"""How speculation with token trees would have fared on an answer that is known.

A target that chooses greedily accepts exactly the candidates that its answer goes on with. So the
counts of a real run follow from the draft model's trees alone, and the target need not run at all.
"""

from __future__ import annotations

from collections.abc import Collection

from powerserve.evaluate.tree_search.predictions import Beginning, DraftPredictions
from powerserve.speculative.best_first import BestFirstGrowth
from powerserve.speculative.draft import TopLogits
from powerserve.speculative.options import SpeculationCounters, TreeParams
from powerserve.speculative.tree import ROOT, TokenTree


class TreeReplay:
    """Grows the trees of one answer, step by step, and follows them along the answer."""

    def __init__(
        self, predictions: DraftPredictions, *, max_tokens: int, stop_ids: Collection[int]
    ) -> None:
        """Args:
        predictions: of the draft model about the answer; `top_k` never exceeds what they hold.
        max_tokens: the limit under which the target answered.
        stop_ids: the target's end tokens.
        """
        self._predictions = predictions
        self._answer = predictions.answer.token_ids
        self._max_tokens = max_tokens
        self._stop_ids = stop_ids

    def run(self, params: TreeParams) -> SpeculationCounters:
        """What `SpeculationMode.TREE` counts with these parameters.

        The answer's first token is not among it: it comes with the prompt.
        """
        counters = SpeculationCounters()
        length = 1
        while length < len(self._answer):
            length += self._step(params, length, counters)
        return counters

    def _step(self, params: TreeParams, length: int, counters: SpeculationCounters) -> int:
        """Verify one tree after `length` tokens of the answer; returns the tokens it brings."""
        tree = TokenTree(self._answer[length - 1], self._max_tokens - length - 1)
        if tree.max_depth:
            counters.num_draft_forwards += self._grow(tree, params, length)
        num_accepted = self._num_accepted(tree, length)
        counters.num_iterations += 1
        counters.num_generated_tokens += num_accepted + 1
        counters.num_draft_tokens += len(tree) - 1
        counters.num_accepted_tokens += num_accepted
        return num_accepted + 1

    def _grow(self, tree: TokenTree, params: TreeParams, length: int) -> int:
        """Fill the tree; returns how often the draft model would have run."""
        beginnings = {ROOT: Beginning(length)}

        def best_tokens(node: int) -> TopLogits:
            if node != ROOT:
                parent = beginnings[tree.parents[node]]  # a node follows one that was computed
                beginnings[node] = self._predictions.extended(parent, tree.token_ids[node])
            return self._predictions.after(beginnings[node])

        BestFirstGrowth(
            params, vocab_size=self._predictions.vocab_size, stop_ids=self._stop_ids
        ).grow_from(tree, best_tokens)
        return len(beginnings)

    def _num_accepted(self, tree: TokenTree, length: int) -> int:
        """Candidates that the answer goes on with; after each of them the target chooses anew."""
        node, accepted = ROOT, 0
        for token_id in self._answer[length:-1]:
            child = tree.child(node, token_id)
            if child is None:
                break
            node, accepted = child, accepted + 1
        return accepted
