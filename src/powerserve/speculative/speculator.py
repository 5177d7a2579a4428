"""Speculation as the engine sees it: ask for trees before a step, report what came of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from powerserve.core.errors import MemoryLimitError
from powerserve.speculative.best_first import BestFirstGrowth
from powerserve.speculative.cost_model import SIZES, CostCurve, LiveCosts, StepTimer, best_plan
from powerserve.speculative.curve_store import CurveSource
from powerserve.speculative.draft import DraftModel
from powerserve.speculative.level_growth import (
    BEST_CHILD,
    Growing,
    LevelGrowth,
    draft_calibration,
    observe_guesses,
)
from powerserve.speculative.options import SpeculationMode, SpeculationOptions
from powerserve.speculative.state import ProposalRequest, SequenceSpeculation, SharedOutputs
from powerserve.speculative.suffix import suffix_calibration
from powerserve.speculative.tree import ROOT, FlatTree, TokenTree

MARGIN = 1.02  # speculation must promise this much, so that noise alone does not start it
MEASURING_HOPE = 1.0  # accepted candidates to expect before the curve is measured
LEAST_PROBABILITY = 0.1  # of a candidate that is looked at while costs are unknown
LEAST_FORCED = 0.02  # the same where something shall be verified whatever it costs

TreeObserver = Callable[[FlatTree, Sequence[int]], None]
"""Called with each verified tree and the rows that were accepted (the root's 0 among them)."""


class Speculator:
    """Builds the token trees of all sequences of a model, as large as they pay."""

    def __init__(
        self,
        options: SpeculationOptions,
        *,
        vocab_size: int,
        stop_ids: Collection[int],
        curve: CurveSource,
        draft: DraftModel | None = None,
        draft_curve: CurveSource | None = None,
    ) -> None:
        """Args:
        options: what the user wants; `draft` and `tree` need a draft model.
        vocab_size, stop_ids: of the target.
        curve, draft_curve: what steps of target and draft cost.
        draft: this object closes it.
        """
        self.options = options
        self.observer: TreeObserver | None = None
        self._vocab_size = vocab_size
        self._stop_ids = frozenset(stop_ids)
        self._curve = curve
        self._draft = draft
        self._draft_curve = draft_curve or CurveSource()
        self._suffixes = suffix_calibration()
        self._guesses = draft_calibration()
        self._shared = SharedOutputs() if options.share_outputs else None
        self._costs: LiveCosts | None = None
        self._time_step: StepTimer | None = None

    def attach(self, time_step: StepTimer) -> None:
        """Take the target's stop-watch: the curve is measured with it when it is needed."""
        self._time_step = time_step

    def new_state(self) -> SequenceSpeculation:
        """The state of a new sequence."""
        shared = None if self._shared is None else self._shared.current
        draft = None if self._draft is None else self._draft.new_state()
        return SequenceSpeculation(self._suffixes, shared, draft)

    def propose(self, requests: Sequence[ProposalRequest]) -> list[FlatTree | None]:
        """A tree for each sequence, or None where its next token comes alone."""
        for request in requests:
            self.discard(request.state)  # the last step may have been interrupted
            request.state.follow(request.token_ids)
        if self.options.mode is SpeculationMode.TREE:
            return [self._original_tree(request) for request in requests]
        trees = [_root(request) for request in requests]
        self._add_repetitions(requests, trees)
        if self._draft is None and all(len(tree) == 1 for tree in trees):
            return [None] * len(requests)  # most steps of most answers
        costs = self._known_costs(trees)
        if costs is None:
            return [None] * len(requests)
        step_seconds = self._step_seconds(costs, requests)
        spent_s = self._add_guesses(requests, trees, step_seconds)
        return self._select(requests, trees, step_seconds, spent_s)

    def settle(
        self,
        state: SequenceSpeculation,
        flat: FlatTree | None,
        rows: Sequence[int],
        tokens: Sequence[int],
    ) -> None:
        """Report a step of a sequence.

        Args:
            state: of the sequence.
            flat: the tree that was verified.
            rows: of the root and the accepted candidates, in their order.
            tokens: what the target chose after each of these rows.
        """
        counters = state.counters
        counters.num_iterations += 1
        counters.num_generated_tokens += len(tokens)
        path = [ROOT] if flat is None else [flat.nodes[row] for row in rows]
        for node, token_id in zip(path, tokens, strict=False):
            observe_guesses(self._guesses, state.guesses.get(node, ()), token_id)
        state.guesses.clear()
        if flat is None:
            return
        counters.num_draft_tokens += len(flat) - 1
        counters.num_accepted_tokens += len(rows) - 1
        if self._draft is not None and state.draft is not None:
            self._draft.keep(state.draft, flat.tree, path[1:])
        if self.observer is not None:
            self.observer(flat, rows)

    def discard(self, state: SequenceSpeculation) -> None:
        """Forget a tree that will not be verified."""
        state.guesses.clear()
        self._drop_nodes(state)

    def observe_step(self, num_tokens: int, num_cells: int, seconds: float) -> None:
        """Note how long a step of decoding sequences took; `num_cells`: of their mean context."""
        if self._costs is not None:
            self._costs.observe(num_tokens, num_cells, seconds)

    def release(self, state: SequenceSpeculation, answer: Sequence[int] = ()) -> None:
        """Forget a sequence that ended with this answer."""
        if self._draft is not None and state.draft is not None:
            self._draft.release(state.draft)
        if self._shared is not None and answer:
            self._shared.add(list(answer))

    def clear_prefixes(self) -> None:
        """Forget what the draft model has computed of earlier sequences."""
        if self._draft is not None:
            self._draft.clear_prefixes()

    def close(self) -> None:
        """Release the draft model."""
        if self._draft is not None:
            self._draft.close()

    @property
    def _tree_sizes(self) -> tuple[int, ...]:
        return SIZES if self._costs is None else self._costs.curve.tree_sizes

    def _add_repetitions(
        self, requests: Sequence[ProposalRequest], trees: Sequence[TokenTree]
    ) -> None:
        if self.options.mode is SpeculationMode.OFF:
            return
        room = min(self.options.max_tokens, SIZES[-1] - 1)
        least = LEAST_PROBABILITY if self._costs is None else self._costs.least_useful
        if self.options.mode is not SpeculationMode.AUTO:
            least = LEAST_FORCED
        for request, tree in zip(requests, trees, strict=True):
            request.state.propose_repetitions(tree, room, least)

    def _known_costs(self, trees: Sequence[TokenTree]) -> LiveCosts | None:
        """What the target's steps cost; measured now if there is something to hope for."""
        if self._costs is None and (curve := self._curve.curve or self._measured(trees)):
            self._costs = LiveCosts(curve)
        return self._costs

    def _measured(self, trees: Sequence[TokenTree]) -> CostCurve | None:
        hope = max(sum(tree.probabilities[1:]) for tree in trees)
        least = MEASURING_HOPE if self.options.mode is SpeculationMode.AUTO else LEAST_FORCED
        if self._time_step is None or (self._draft is None and hope < least):
            return None
        try:
            return self._curve.measure(self._time_step, SIZES[-1])
        except MemoryLimitError:
            return None  # no cell is free to measure with: later

    def _step_seconds(
        self, costs: LiveCosts, requests: Sequence[ProposalRequest]
    ) -> Callable[[int], float]:
        """Seconds of the target's next step by its tokens."""
        num_sequences = len(requests)
        num_cells = sum(len(request.token_ids) for request in requests) // num_sequences
        margin = MARGIN if self.options.mode is SpeculationMode.AUTO else 1.0

        def seconds(num_tokens: int) -> float:
            expected_s = costs(num_tokens, num_cells)
            return expected_s * margin if num_tokens > num_sequences else expected_s

        return seconds

    def _select(
        self,
        requests: Sequence[ProposalRequest],
        trees: Sequence[TokenTree],
        step_seconds: Callable[[int], float],
        spent_s: float,
    ) -> list[FlatTree | None]:
        """Of all candidates of all trees, those that are worth a place in the step."""
        ranked = sorted(
            ((tree.probabilities[node], index, node) for index, tree in enumerate(trees)
             for node in range(1, len(tree))),
            key=lambda each: -each[0],
        )  # fmt: skip
        plan = best_plan(
            step_seconds,
            [probability for probability, _, _ in ranked],
            len(requests),
            sizes=self._tree_sizes,
            extra_s=spent_s,
            forced=self.options.mode is not SpeculationMode.AUTO,
        )
        chosen: list[list[int]] = [[] for _ in trees]
        for _, index, node in ranked[: plan.num_candidates]:
            chosen[index].append(node)
        flats: list[FlatTree | None] = []
        for request, tree, nodes in zip(requests, trees, chosen, strict=True):
            flats.append(tree.flatten(nodes[: self.options.max_tokens]) if nodes else None)
            if not nodes:
                self._drop_nodes(request.state)  # but learn from what was guessed
        return flats

    def _add_guesses(
        self,
        requests: Sequence[ProposalRequest],
        trees: Sequence[TokenTree],
        step_seconds: Callable[[int], float],
    ) -> float:
        """Let the draft model add candidates if that pays; expected seconds it took."""
        draft = self._draft
        if draft is None or self.options.mode not in (SpeculationMode.AUTO, SpeculationMode.DRAFT):
            return 0.0
        draft_curve = self._draft_curve.curve
        if draft_curve is None:
            draft_curve = self._draft_curve.measure(draft.time_step, SIZES[-1])
        growth = LevelGrowth(
            draft,
            self._guesses,
            step_seconds,
            draft_curve,
            self._vocab_size,
            self._tree_sizes,
        )
        if self.options.mode is SpeculationMode.AUTO and not self._draft_pays(
            growth, requests, trees
        ):
            self._guesses.fade(BEST_CHILD)
            return 0.0
        group: list[Growing] = []
        spent_s = 0.0
        for request, tree in zip(requests, trees, strict=True):
            assert request.state.draft is not None
            growing = Growing(tree, request.state.draft, request.state)
            spent_s += draft_curve(draft.num_missing(growing.draft, request.token_ids))
            if growth.start(growing, request.token_ids):
                group.append(growing)
        return growth.grow(group, spent_s)

    def _draft_pays(
        self,
        growth: LevelGrowth,
        requests: Sequence[ProposalRequest],
        trees: Sequence[TokenTree],
    ) -> bool:
        """Whether the draft model is expected to make the rest of the answers faster."""
        assert self._draft is not None
        missing = 0
        for request in requests:
            assert request.state.draft is not None
            missing += self._draft.num_missing(request.state.draft, request.token_ids)
        expected_tokens = sum(request.expected_tokens for request in requests)
        return growth.pays(trees, missing, expected_tokens)

    def _original_tree(self, request: ProposalRequest) -> FlatTree | None:
        """A tree as the original grew it; None while the draft model reads the prompt."""
        draft, state = self._draft, request.state
        assert draft is not None and state.draft is not None
        before = draft.num_forwards
        logits = draft.catch_up(state.draft, request.token_ids)
        if logits is None or request.max_depth < 1:
            return None
        tree = _root(request)
        BestFirstGrowth(
            self.options.tree, vocab_size=self._vocab_size, stop_ids=self._stop_ids
        ).grow(tree, logits, draft, state.draft)
        state.counters.num_draft_forwards += draft.num_forwards - before
        return tree.flatten(list(range(1, len(tree))))

    def _drop_nodes(self, state: SequenceSpeculation) -> None:
        """Forget what the draft model has computed of a tree."""
        if self._draft is not None and state.draft is not None:
            self._draft.discard(state.draft)


def _root(request: ProposalRequest) -> TokenTree:
    return TokenTree(int(request.token_ids[-1]), request.max_depth)
