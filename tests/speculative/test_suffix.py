"""Proposals from repetition, against a naive search of the whole history."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from powerserve.speculative.calibration import Calibration
from powerserve.speculative.suffix import (
    MAX_OCCURRENCES,
    SuffixMatcher,
    TokenHistory,
    suffix_calibration,
)
from powerserve.speculative.tree import ROOT, TokenTree


class Reader:
    """One sequence that looks for repetitions in itself, or in another history."""

    def __init__(self, history: TokenHistory | None = None) -> None:
        self.own = TokenHistory()
        self.calibration = suffix_calibration()
        self.matcher = SuffixMatcher(history or self.own, self.calibration)

    def read(self, token_ids: list[int]) -> Reader:
        for token_id in token_ids:
            self.matcher.observe(token_id)
            self.own.append(token_id)
            self.matcher.advance(self.own.token_ids)
        return self

    def tree(self, max_nodes: int = 31, least: float = 0.0, max_depth: int = 99) -> TokenTree:
        tree = TokenTree(self.own.token_ids[-1], max_depth)
        self.matcher.propose(tree, max_nodes, least)
        return tree


def paths(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every path from the root, as tokens."""
    return {tuple(tree.token_ids[each] for each in tree.path(node)) for node in range(1, len(tree))}


def longest_match(tokens: list[int]) -> tuple[int, set[int]]:
    """The longest earlier occurrence of a suffix, and the tokens that followed such ones."""
    for length in range(len(tokens) - 1, 1, -1):
        suffix = tokens[-length:]
        ends = [end for end in range(length, len(tokens)) if tokens[end - length : end] == suffix]
        if ends:
            return length, {tokens[end] for end in ends}
    return 0, set()


def test_a_repeated_passage_is_proposed_to_its_end() -> None:
    passage = [5, 1, 4, 2, 8, 3, 7]
    tree = Reader().read([*passage, 9, 9, 5, 1, 4]).tree()
    assert (2, 8, 3, 7, 9, 9) in paths(tree)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=MAX_OCCURRENCES))
def test_the_longest_match_is_found(tokens: list[int]) -> None:
    """In a text so short that no occurrence has been forgotten."""
    length, following = longest_match(tokens)
    tree = Reader().read(tokens).tree()
    proposed = [tree.token_ids[child] for child in tree.children(ROOT)]
    assert bool(proposed) == (length >= 2)
    if proposed:
        best = max(tree.children(ROOT), key=lambda child: tree.probabilities[child])
        assert tree.token_ids[best] in following


@given(st.lists(st.integers(0, 2), min_size=2, max_size=60))
def test_every_proposal_continues_something_that_was_there(tokens: list[int]) -> None:
    for path in paths(Reader().read(tokens).tree()):
        whole = [tokens[-2], tokens[-1], *path]
        assert any(tokens[start : start + len(whole)] == whole for start in range(len(tokens)))


def test_what_holds_more_often_becomes_more_probable() -> None:
    reliable, unreliable = Reader(), Reader()
    reliable.read([1, 2, 3, 4, 5, 6, 7, 8] * 10)
    unreliable.read([token for i in range(40) for token in (1, 2, 10 + i)])
    unreliable.read([1, 2])
    assert reliable.tree().probabilities[1] > 0.9
    assert unreliable.tree().probabilities[1] < 0.15


def test_the_limits_hold() -> None:
    reader = Reader().read([*range(40), *range(5)])
    assert len(reader.tree(max_nodes=7)) == 8
    assert max(reader.tree(max_depth=3).depths) == 3
    tree = reader.tree(least=0.3)
    assert len(tree) > 1 and min(tree.probabilities) >= 0.3


def test_another_history_can_be_searched() -> None:
    shared = TokenHistory()
    for token_id in [1, 2, 3, 4, 5, 6]:
        shared.append(token_id)
    reader = Reader(shared).read([9, 8, 2, 3])
    assert paths(reader.tree()) == {(4,), (4, 5), (4, 5, 6)}
    assert Reader().read([9, 8, 2, 3]).tree().token_ids == [3]


def test_a_request_starts_where_all_others_are_and_finds_its_own_way() -> None:
    everyone = Calibration([0.5], strength=10, memory=1000)
    for _ in range(100):
        everyone.observe(0, True)
    own = Calibration(everyone, strength=4, memory=100)
    assert own.rate(0) == everyone.rate(0) > 0.9
    for _ in range(20):
        own.observe(0, False)
    assert own.rate(0) < 0.2 < everyone.rate(0)


def test_observations_fade_to_the_prior() -> None:
    calibration = Calibration([0.8], strength=4, memory=50)
    for _ in range(30):
        calibration.observe(0, False)
    assert calibration.rate(0) < 0.2
    for _ in range(500):
        calibration.fade(0)
    assert abs(calibration.rate(0) - 0.8) < 0.01
