"""Growing token trees level by level with a draft model, as long as that pays.

One run of the draft model computes the most promising nodes of one depth in all trees. Before each
run the expected speed with it is compared with the speed without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.speculative.calibration import Calibration
from powerserve.speculative.cost_model import SIZES, Plan, best_plan
from powerserve.speculative.draft import DraftModel, DraftState, top_logits
from powerserve.speculative.state import Guess, SequenceSpeculation
from powerserve.speculative.tree import ROOT, TokenTree

NUM_CHILDREN = 4  # candidates of a node
WIDTHS = (1, 2, 4)  # nodes of a level
NUM_CONSIDERED = 64  # tokens that share a node's probability; the rest has none to speak of
LOOKAHEADS = (1, 2, 3, 5, 7)  # levels that may together make a level worth its price

_BOUNDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
_PRIORS = (0.02, 0.07, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.92, 0.96, 0.98)
BEST_CHILD = len(_PRIORS)  # the kind of a node's most probable child, whatever its probability
_BEST_CHILD_PRIOR = 0.9  # hopeful, so that a draft model gets its chance

StepSeconds = Callable[[int], float]


def draft_calibration() -> Calibration:
    """What verified candidates of a draft model show about its probabilities."""
    return Calibration([*_PRIORS, _BEST_CHILD_PRIOR], strength=4, memory=400)


@dataclass(frozen=True, slots=True, eq=False)
class Growing:
    """A tree in the making, and what the draft model knows of its sequence."""

    tree: TokenTree
    draft: DraftState
    state: SequenceSpeculation


class LevelGrowth:
    """Decides about each level of a group of trees, and computes it."""

    def __init__(
        self,
        draft: DraftModel,
        calibration: Calibration,
        target_seconds: StepSeconds,
        draft_seconds: StepSeconds,
        vocab_size: int,
        sizes: Sequence[int] = SIZES,
    ) -> None:
        """`target_seconds`, `draft_seconds`: of a step by its tokens; `sizes`: see `best_plan`."""
        self._sizes = sizes
        self._draft = draft
        self._calibration = calibration
        self._target_seconds = target_seconds
        self._draft_seconds = draft_seconds
        self._vocab_size = vocab_size

    def pays(self, trees: Sequence[TokenTree], num_missing: int, expected_tokens: int) -> bool:
        """Whether to ask the draft model at all.

        Args:
            trees: with the candidates that are there without it.
            num_missing: tokens that it would have to catch up on first, in all sequences.
            expected_tokens: of the answers' rest, over which catching up must pay.
        """
        num_sequences = len(trees)
        usual_backlog = min(num_missing, 2 * num_sequences)
        without = self._plan(_descending(trees), num_sequences, 0.0).tokens_per_s
        speed = self._best_speed(trees, [1.0] * num_sequences, self._draft_seconds(usual_backlog))
        if speed <= without:
            return False
        backlog_s = self._draft_seconds(num_missing) - self._draft_seconds(usual_backlog)
        return expected_tokens * (1 / without - 1 / speed) > backlog_s

    def start(self, growing: Growing, token_ids: Int32Array) -> bool:
        """Let the draft model catch up and guess what follows the root; False: not in this step."""
        logits = self._draft.catch_up(growing.draft, token_ids)
        if logits is None:
            return False
        self._add_guesses(growing, ROOT, logits)
        return True

    def grow(self, group: Sequence[Growing], spent_s: float) -> float:
        """Add levels below the computed roots while they pay; seconds spent, expected."""
        trees = [growing.tree for growing in group]
        frontier = [(growing, ROOT) for growing in group]
        while frontier := self._candidates(frontier):
            width = self._best_width(trees, frontier, spent_s)
            if not width:
                break
            chosen = frontier[:width]
            spent_s += self._draft_seconds(width)
            if not self._compute(chosen):
                break
            frontier = chosen
        return spent_s

    def _add_guesses(self, growing: Growing, node: int, logits: FloatArray) -> None:
        """Give a computed node its candidates."""
        growing.state.counters.num_draft_forwards += 1
        ids, values = top_logits(logits, NUM_CONSIDERED, self._vocab_size)
        weights = np.exp(values - values[0])
        shares = (weights / weights.sum())[:NUM_CHILDREN]
        guesses = [
            Guess(token_id, _kind(share))
            for token_id, share in zip(ids.tolist(), shares.tolist(), strict=False)
        ]
        growing.state.guesses[node] = guesses
        if growing.tree.is_extendable(node):
            for guess in guesses:
                growing.tree.add(node, guess.token_id, self._calibration.rate(guess.kind))

    def _candidates(self, computed: Sequence[tuple[Growing, int]]) -> list[tuple[Growing, int]]:
        """The children of what was computed last, most probable first."""
        children = [
            (growing, child)
            for growing, node in computed
            for child in growing.tree.children(node)
            if growing.tree.is_extendable(child)
        ]
        return sorted(children, key=lambda each: -each[0].tree.probabilities[each[1]])

    def _best_width(
        self, trees: Sequence[TokenTree], frontier: Sequence[tuple[Growing, int]], spent_s: float
    ) -> int:
        """How many nodes of the frontier to compute; 0 if stopping here is faster."""
        reached = [growing.tree.probabilities[node] for growing, node in frontier[: WIDTHS[-1]]]
        best_speed = self._plan(_descending(trees), len(trees), spent_s).tokens_per_s
        best_width = 0
        for width in WIDTHS:
            if width > len(reached):
                break
            speed = self._best_speed(trees, reached[:width], spent_s + self._draft_seconds(width))
            if speed > best_speed:
                best_speed, best_width = speed, width
        return best_width

    def _best_speed(
        self, trees: Sequence[TokenTree], frontier: Sequence[float], spent_s: float
    ) -> float:
        """Tokens per second to expect if the draft model computes nodes of these probabilities,
        and as many below them as are best."""
        probabilities, chance = _descending(trees), self._calibration.rate(BEST_CHILD)
        level_s = self._draft_seconds(len(frontier))
        best = 0.0
        for levels in LOOKAHEADS:
            further = [p * chance**level for p in frontier for level in range(1, levels + 1)]
            merged = sorted([*probabilities, *further], reverse=True)
            plan = self._plan(merged, len(trees), spent_s + (levels - 1) * level_s)
            best = max(best, plan.tokens_per_s)
        return best

    def _plan(self, probabilities: list[float], num_sequences: int, spent_s: float) -> Plan:
        return best_plan(
            self._target_seconds, probabilities, num_sequences, sizes=self._sizes, extra_s=spent_s
        )

    def _compute(self, chosen: Sequence[tuple[Growing, int]]) -> bool:
        """Run the draft model on these nodes; False if its cache is full."""
        levels: dict[int, tuple[Growing, list[int]]] = {}
        for growing, node in chosen:
            levels.setdefault(id(growing), (growing, []))[1].append(node)
        groups = list(levels.values())
        results = self._draft.run_nodes([(g.draft, g.tree, nodes) for g, nodes in groups])
        if results is None:
            return False
        for (growing, nodes), logits in zip(groups, results, strict=True):
            for node, row in zip(nodes, logits, strict=True):
                self._add_guesses(growing, node, row)
        return True


def observe_guesses(calibration: Calibration, guesses: Sequence[Guess], token_id: int) -> None:
    """Learn from the token that the target chose where the draft model had guesses."""
    for rank, guess in enumerate(guesses):
        calibration.observe(guess.kind, guess.token_id == token_id)
        if rank == 0:
            calibration.observe(BEST_CHILD, guess.token_id == token_id)


def _kind(probability: float) -> int:
    return sum(probability >= bound for bound in _BOUNDS)


def _descending(trees: Sequence[TokenTree]) -> list[float]:
    return sorted((p for tree in trees for p in tree.probabilities[1:]), reverse=True)
