"""The token tree: what may follow a sequence, and how probable each continuation is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from powerserve.backend.base import Int32Array

ROOT = 0


class TokenTree:
    """Candidates for the tokens after the last confirmed one, which is the root, node 0.

    Parents precede their children. `probabilities[node]` estimates how probable it is that the
    target accepts the node with all its ancestors, so it never grows along a path.
    """

    def __init__(self, root_token: int, max_depth: int) -> None:
        """`max_depth`: candidates deeper below the root could not be used."""
        self.max_depth = max_depth
        self.token_ids = [root_token]
        self.parents = [-1]
        self.depths = [0]
        self.probabilities = [1.0]
        self._children: list[dict[int, int]] = [{}]  # of each node: token -> node

    def __len__(self) -> int:
        return len(self.token_ids)

    def add(self, parent: int, token_id: int, probability: float) -> int:
        """Return the child of `parent` with this token, new or not.

        `probability` is that of the child if the parent is accepted. Proposers may agree on a node:
        the greater estimate counts.
        """
        reached = self.probabilities[parent] * probability
        node = self._children[parent].get(token_id)
        if node is not None:
            self.probabilities[node] = max(self.probabilities[node], reached)
            return node
        node = len(self.token_ids)
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.probabilities.append(reached)
        self._children.append({})
        self._children[parent][token_id] = node
        return node

    def is_extendable(self, node: int) -> bool:
        """Whether a child of this node could be used."""
        return self.depths[node] < self.max_depth

    def child(self, node: int, token_id: int) -> int | None:
        """The child of a node that carries this token."""
        return self._children[node].get(token_id)

    def children(self, node: int) -> list[int]:
        """The children of a node in the order they came."""
        return list(self._children[node].values())

    def path(self, node: int) -> list[int]:
        """The nodes from the root's child down to this node; empty for the root."""
        nodes: list[int] = []
        while node != ROOT:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def best(self, count: int) -> list[int]:
        """The `count` most probable candidates, most probable first; with each come its parents."""
        order = sorted(range(1, len(self)), key=lambda node: -self.probabilities[node])
        return order[:count]  # sorting is stable, so an equally probable parent comes first

    def flatten(self, candidates: list[int]) -> FlatTree:
        """The root and these candidates (parents included) in the order they are verified.

        The most probable path comes first and in one piece, so that the cells of what is accepted
        mostly lie together.
        """
        chosen = set(candidates)
        nodes: list[int] = []
        stack = [ROOT]
        while stack:
            node = stack.pop()
            nodes.append(node)
            children = [child for child in self._children[node].values() if child in chosen]
            stack += sorted(children, key=lambda child: self.probabilities[child])
        return FlatTree(self, nodes)


@dataclass(frozen=True)
class FlatTree:
    """A part of a token tree in the order of a batch: row i of the step is `nodes[i]`."""

    tree: TokenTree
    nodes: list[int]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def rows(self) -> dict[int, int]:
        """Node -> row."""
        return {node: row for row, node in enumerate(self.nodes)}

    @property
    def token_ids(self) -> Int32Array:
        """int32 [rows]."""
        return np.array([self.tree.token_ids[node] for node in self.nodes], np.int32)

    @property
    def depths(self) -> Int32Array:
        """int32 [rows]; the root's is 0."""
        return np.array([self.tree.depths[node] for node in self.nodes], np.int32)

    @property
    def parents(self) -> Int32Array:
        """int32 [rows], the row of each row's parent; -1 for the root."""
        rows = self.rows
        return np.array([-1, *(rows[self.tree.parents[node]] for node in self.nodes[1:])], np.int32)

    def child_row(self, row: int, token_id: int) -> int | None:
        """The row that continues `row` with this token, if it is verified in this step."""
        child = self.tree.child(self.nodes[row], token_id)
        return None if child is None else self.rows.get(child)
