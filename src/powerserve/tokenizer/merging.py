"""The merge loop shared by byte-level BPE and SentencePiece.

Starting from single characters, the adjacent pair with the lowest rank is joined, the leftmost
first among equals, until no pair has a rank (Sennrich et al. 2016, “Neural machine translation of
rare words with subword units”). BPE ranks a pair by its merge's position, SentencePiece by its
token's score.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import pairwise
from math import inf

NO_MERGE = inf  # the rank of a pair that must not be joined

RankPair = Callable[[str, str], float]

# Up to here rescanning a short list of ranks beats a heap; above, the heap's n log n matters.
_SCAN_LIMIT = 160


def merge_symbols(symbols: list[str], rank: RankPair) -> list[str]:
    """Join `symbols` as far as `rank` allows; `symbols` may be changed in place."""
    if len(symbols) <= _SCAN_LIMIT:
        return _merge_by_scan(symbols, rank)
    return _merge_by_heap(symbols, rank)


def _merge_by_scan(symbols: list[str], rank: RankPair) -> list[str]:
    ranks = [rank(left, right) for left, right in pairwise(symbols)]
    while ranks:
        lowest = min(ranks)
        if lowest == NO_MERGE:
            break
        at = ranks.index(lowest)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        del ranks[at]
        if at > 0:
            ranks[at - 1] = rank(symbols[at - 1], symbols[at])
        if at < len(ranks):
            ranks[at] = rank(symbols[at], symbols[at + 1])
    return symbols


def _merge_by_heap(symbols: list[str], rank: RankPair) -> list[str]:
    """The same with a heap of candidate pairs over a linked list; merged-away symbols are ""."""
    end = len(symbols)
    following = list(range(1, end + 1))
    preceding = list(range(-1, end - 1))
    candidates: list[tuple[float, int, int]] = []  # rank, left index, length of the joined text

    def consider(left: int, right: int) -> None:
        if left < 0 or right >= end:
            return
        pair_rank = rank(symbols[left], symbols[right])
        if pair_rank != NO_MERGE:
            length = len(symbols[left]) + len(symbols[right])
            heapq.heappush(candidates, (pair_rank, left, length))

    for index in range(end - 1):
        consider(index, index + 1)
    while candidates:
        _, left, length = heapq.heappop(candidates)
        right = following[left]
        if not symbols[left] or right >= end or len(symbols[left]) + len(symbols[right]) != length:
            continue  # a neighbour has been merged since; a fresh candidate was pushed then
        symbols[left] += symbols[right]
        symbols[right] = ""
        following[left] = following[right]
        if following[left] < end:
            preceding[following[left]] = left
        consider(preceding[left], left)
        consider(left, following[left])
    return [symbol for symbol in symbols if symbol]
