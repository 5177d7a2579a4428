"""Prefixes that share their beginnings, each token once: what is worth saving of a prefix index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from powerserve.backend.base import Int32Array, Int64Array
from powerserve.cache.prefix import common_prefix


@dataclass(frozen=True, slots=True, eq=False)
class PrefixTree:
    """Tokens in rows, and prefixes as paths through them.

    Attributes:
        token_ids: int32 [rows].
        branches: int32 [prefixes, 3], the most recently used first. A branch (base, shared, added)
            is a prefix that begins with the first `shared` rows of branch `base`, an earlier one,
            and goes on with the next `added` rows that no earlier branch has.
    """

    token_ids: Int32Array
    branches: Int32Array

    @classmethod
    def of(
        cls, prefixes: Sequence[tuple[Int32Array, Int64Array]], max_rows: int
    ) -> tuple[Self, Int64Array]:
        """Merge prefixes (token ids, cells), and say which cell holds each row.

        Later prefixes are cut off, or left out, where `max_rows` are reached.
        """
        branches: list[tuple[int, int, int]] = []
        token_ids, cells = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        taken: list[Int32Array] = []
        num_rows = 0
        for tokens, where in prefixes:
            base, shared = _longest_shared(tokens, taken)
            added = min(len(tokens) - shared, max_rows - num_rows)
            if added <= 0:
                continue  # nothing new, or no room for it
            taken.append(tokens[: shared + added])
            branches.append((base, shared, added))
            token_ids.append(tokens[shared : shared + added])
            cells.append(where[shared : shared + added])
            num_rows += added
        table = np.array(branches, np.int32).reshape(-1, 3)
        return cls(np.concatenate(token_ids), table), np.concatenate(cells)

    def paths(self) -> list[Int64Array]:
        """The rows of each prefix, in order. Raises ValueError if the branches make no sense."""
        paths: list[Int64Array] = []
        start = 0
        for base, shared, added in self.branches.tolist():
            beginning = paths[base] if 0 <= base < len(paths) else np.empty(0, np.int64)
            if not 0 <= shared <= len(beginning) or not 0 <= added <= len(self.token_ids) - start:
                raise ValueError(f"branch {len(paths)} of a prefix tree leads nowhere")
            paths.append(np.concatenate([beginning[:shared], np.arange(start, start + added)]))
            start += added
        return paths


def _longest_shared(tokens: Int32Array, earlier: Sequence[Int32Array]) -> tuple[int, int]:
    """Which of the earlier prefixes has most in common with `tokens`, and how much."""
    base, shared = 0, 0
    for index, other in enumerate(earlier):
        if (length := common_prefix(other, tokens)) > shared:
            base, shared = index, length
    return base, shared
