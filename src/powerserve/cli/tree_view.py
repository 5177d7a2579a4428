"""Token trees as text, to see what speculation guessed and what came true."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from powerserve.speculative.tree import FlatTree
from powerserve.tokenizer.tokenizer import Tokenizer


class TreePrinter:
    """Prints verified trees to standard error, numbered."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._count = 0

    def __call__(self, flat: FlatTree, accepted: Sequence[int]) -> None:
        """Print one tree; `accepted` rows are marked, the root (row 0) among them."""
        self._count += 1
        print(
            f"tree {self._count}: {len(accepted) - 1} of {len(flat) - 1} accepted", file=sys.stderr
        )
        for line in tree_lines(flat, accepted, self._tokenizer):
            print(line, file=sys.stderr)


def tree_lines(flat: FlatTree, accepted: Sequence[int], tokenizer: Tokenizer) -> Iterator[str]:
    """A line for each node: `[*]` if it was accepted, its text, how probable it was thought."""
    marked = set(accepted)
    for row, node in enumerate(flat.nodes):
        text = tokenizer.decode([flat.tree.token_ids[node]], special=True)
        indent = "  " * flat.tree.depths[node]
        mark = "[*]" if row in marked else "[ ]"
        yield f"{indent}{mark} {text!r} {flat.tree.probabilities[node]:.3f}"
