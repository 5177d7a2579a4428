"""The parameters of token trees that are tried."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import product
from random import Random

from powerserve.speculative.options import TreeParams


@dataclass(frozen=True, slots=True)
class TreeGrid:
    """The values that each field of `TreeParams` takes: by default the original's 1620 points."""

    draft_batch_size: tuple[int, ...] = (12,)
    top_k: tuple[int, ...] = (10, 15, 20)
    temperature: tuple[float, ...] = (1.2, 1.4, 1.5, 1.6, 1.7, 1.8)
    p_base: tuple[float, ...] = (0.6, 0.75, 0.9)
    max_fan_out: tuple[int, ...] = (3, 5, 6, 7, 8, 9)
    min_prob: tuple[float, ...] = (0.1, 0.15, 0.175, 0.2, 0.25)
    early_stop: tuple[bool, ...] = (True,)

    def points(self, seed: int) -> list[TreeParams]:
        """Every point once: the defaults of each tree size first, the others in random order.

        The defaults are there in any case, so that there is something to compare with. Raises
        UsageError if a value is not possible.
        """
        values = [getattr(self, each.name) for each in fields(self)]
        others = [TreeParams(*point) for point in product(*values)]
        Random(seed).shuffle(others)
        return list(dict.fromkeys([*self.defaults(), *others]))

    def defaults(self) -> list[TreeParams]:
        """The default parameters with each of the tree sizes."""
        return [replace(TreeParams(), draft_batch_size=size) for size in self.draft_batch_size]
