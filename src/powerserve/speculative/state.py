"""What speculation remembers of one sequence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from powerserve.backend.base import Int32Array
from powerserve.speculative.calibration import Calibration
from powerserve.speculative.draft import DraftState
from powerserve.speculative.options import SpeculationCounters
from powerserve.speculative.suffix import SuffixMatcher, TokenHistory
from powerserve.speculative.tree import TokenTree


class Guess(NamedTuple):
    """A candidate of the draft model, and the kind its probability belongs to."""

    token_id: int
    kind: int


class SequenceSpeculation:
    """The repetitions of one sequence, the draft model's part of it, and what came of them."""

    def __init__(
        self, calibration: Calibration, shared: TokenHistory | None, draft: DraftState | None
    ) -> None:
        """Args:
        calibration: what all sequences show about repetitions.
        shared: answers to other requests, if they may be used.
        draft: None without a draft model.
        """
        self.counters = SpeculationCounters()
        self.draft = draft
        self.guesses: dict[int, list[Guess]] = {}  # of nodes that the draft computed, best first
        self._history = TokenHistory()
        own = Calibration(calibration, strength=4, memory=200)
        histories = [self._history] if shared is None else [self._history, shared]
        self._matchers = [SuffixMatcher(history, own) for history in histories]

    @property
    def token_ids(self) -> list[int]:
        """The tokens seen so far."""
        return self._history.token_ids

    def follow(self, token_ids: Int32Array) -> None:
        """Take in what the sequence [tokens] has got since the last call."""
        history = self._history
        known = len(history.token_ids)
        if not known:  # the prompt: nothing was predicted, so nothing is learnt from it
            for token_id in token_ids[:-1].tolist():
                history.append(token_id)
            known = len(token_ids) - 1
        for token_id in token_ids[known:].tolist():
            for matcher in self._matchers:
                matcher.observe(token_id)
            history.append(token_id)
            for matcher in self._matchers:
                matcher.advance(history.token_ids)

    def propose_repetitions(self, tree: TokenTree, max_nodes: int, least: float) -> None:
        """Add at most `max_nodes` candidates of each history to the tree."""
        for matcher in self._matchers:
            matcher.propose(tree, max_nodes, least)


@dataclass(frozen=True, slots=True, eq=False)
class ProposalRequest:
    """A sequence that is about to be continued by one token or more."""

    state: SequenceSpeculation
    token_ids: Int32Array  # prompt and answer; the last one is the root of the tree
    max_depth: int  # candidates below the root that could be used
    expected_tokens: int  # a guess how many are still to come


@dataclass(slots=True)
class SharedOutputs:
    """Answers of finished sequences, for those to come; the older half goes when it is full."""

    max_tokens: int = 200_000
    current: TokenHistory = field(default_factory=TokenHistory)

    def add(self, token_ids: list[int]) -> None:
        """Keep an answer."""
        if len(self.current.token_ids) + len(token_ids) > self.max_tokens:
            kept = self.current.token_ids[-self.max_tokens // 2 :]
            self.current = TokenHistory()  # running sequences go on reading the old one
            self._append(kept)
        self._append(token_ids)

    def _append(self, token_ids: list[int]) -> None:
        for token_id in token_ids:
            self.current.append(token_id)
