"""Proposals from repetition: what followed the last time these tokens occurred.

The idea is that of prompt lookup (Saxena 2023) and SuffixDecoding (Oliaro et al. 2024): answers
repeat their prompt and themselves. All earlier occurrences of the last tokens that are still
matching are followed from token to token, each with the length of its match, at O(1) a token; the
longer the match, the more probable that the next token is the same again. How probable is learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from operator import itemgetter
from typing import NamedTuple

from powerserve.speculative.calibration import Calibration
from powerserve.speculative.tree import ROOT, TokenTree

MAX_OCCURRENCES = 8  # of a pair of tokens that are remembered, and matches that are followed
NUM_RANKS = 3  # different next tokens that are considered
_LONGEST = 32  # matches beyond this length are all alike

# Kinds of matches by length, and how often they hold: first guesses from code and chat.
_LENGTH_BOUNDS = (2, 3, 4, 6, 8, 12, 16, 24, _LONGEST)
_PRIORS = (
    (0.22, 0.32, 0.42, 0.55, 0.68, 0.78, 0.84, 0.90, 0.95),  # the longest match
    (0.10, 0.12, 0.12, 0.12, 0.12, 0.12, 0.10, 0.08, 0.05),  # the second
    (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.04, 0.03, 0.02),
)
_LENGTH_KIND = [
    sum(length >= bound for bound in _LENGTH_BOUNDS[1:]) for length in range(_LONGEST + 1)
]
_PAIR_SHIFT = 32  # bits; token ids are int32


class Match(NamedTuple):
    """An earlier occurrence of the last `length` tokens; the token at `position` followed it."""

    position: int
    length: int


def suffix_calibration() -> Calibration:
    """What all requests of a model show about matches; a request's own calibration rests on it."""
    return Calibration([rate for row in _PRIORS for rate in row], strength=16, memory=1000)


class TokenHistory:
    """Tokens, and where each pair of neighbours occurred lately."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._occurrences: dict[int, list[int]] = {}  # pair -> positions after it, newest last

    def append(self, token_id: int) -> None:
        """Add a token at the end."""
        tokens = self.token_ids
        tokens.append(token_id)
        if len(tokens) < 2:
            return
        positions = self._occurrences.setdefault(_pair(tokens[-2], token_id), [])
        positions.append(len(tokens))
        if len(positions) > MAX_OCCURRENCES:
            del positions[0]

    def occurrences(self, first: int, second: int) -> Sequence[int]:
        """Positions after the latest occurrences of this pair, oldest first."""
        return self._occurrences.get(_pair(first, second), ())


class SuffixMatcher:
    """Follows the matches between the tail of a sequence and a history (often its own)."""

    def __init__(self, history: TokenHistory, calibration: Calibration) -> None:
        self.history = history
        self.calibration = calibration
        self._matches: list[Match] = []  # longest first, then newest first

    def observe(self, token_id: int) -> None:
        """Learn from the token that comes next, before anything takes notice of it."""
        for rank, group in enumerate(self._groups(self._matches)):
            kind = _kind(rank, group[0].length)
            self.calibration.observe(kind, self.history.token_ids[group[0].position] == token_id)

    def advance(self, tail: Sequence[int]) -> None:
        """Take notice of the last of `tail`, the sequence's tokens.

        If the history is the sequence's own, it has got this token already.
        """
        known, token_id = self.history.token_ids, tail[-1]
        matches = [
            Match(position + 1, length + 1)
            for position, length in self._matches
            if known[position] == token_id and position + 1 < len(known)
        ]
        if len(tail) > 1:
            followed = {match.position for match in matches}
            matches += [
                Match(position, self._length(tail, position))
                for position in reversed(self.history.occurrences(tail[-2], token_id))
                if position not in followed and position < len(known)
            ]
        matches.sort(key=itemgetter(1), reverse=True)
        self._matches = matches[:MAX_OCCURRENCES]

    def propose(self, tree: TokenTree, max_nodes: int, least: float) -> None:
        """Add at most `max_nodes` candidates that are at least as probable as `least`."""
        if not self._matches:
            return
        heap = [(-1.0, ROOT, self._matches)]
        count = 0
        while heap and count < max_nodes:
            negative, node, matches = heappop(heap)
            if not tree.is_extendable(node):
                continue
            for rank, group in enumerate(self._groups(matches)):
                rate = self.calibration.rate(_kind(rank, group[0].length))
                if -negative * rate < least:
                    break  # lower ranks are less probable still
                token_id = self.history.token_ids[group[0].position]
                child = tree.add(node, token_id, rate)
                count += 1
                ahead = self._ahead(group)
                if ahead:
                    heappush(heap, (negative * rate, child, ahead))

    def _groups(self, matches: list[Match]) -> Iterable[list[Match]]:
        """Matches by their next token; the group with the longest match comes first."""
        groups: dict[int, list[Match]] = {}
        known = self.history.token_ids
        for match in matches:
            groups.setdefault(known[match.position], []).append(match)
        return list(groups.values())[:NUM_RANKS]

    def _ahead(self, matches: list[Match]) -> list[Match]:
        """The same matches one token on, as far as the history reaches."""
        end = len(self.history.token_ids)
        return [Match(p + 1, length + 1) for p, length in matches if p + 1 < end]

    def _length(self, tail: Sequence[int], position: int) -> int:
        """How many of the last tokens also stand before `position`: 2 … _LONGEST."""
        known = self.history.token_ids
        limit = min(len(tail), position, _LONGEST)
        length = 2
        while length < limit and known[position - length - 1] == tail[-length - 1]:
            length += 1
        return length


def _kind(rank: int, length: int) -> int:
    return rank * len(_LENGTH_BOUNDS) + _LENGTH_KIND[min(length, _LONGEST)]


def _pair(first: int, second: int) -> int:
    return first << _PAIR_SHIFT | second
