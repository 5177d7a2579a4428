"""The tokens still in the running, and finding the best of them without sorting all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Weights = NDArray[np.float32] | NDArray[np.float64]
Ids = NDArray[np.int64]

_MAX_GROUP_SIZE = 64
_MIN_GROUP_SIZE = 4  # below, the group maxima cost more than they save
_GROUPS_PER_RESULT = 4  # enough that few groups hold two of the results, so the threshold is tight


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens that may still be chosen: ids and logits, both [n]; n >= 1.

    `descending` says that the logits fall; equal ones are then ordered by id.
    """

    ids: Ids
    logits: Floats
    descending: bool = False

    @classmethod
    def whole_vocabulary(cls, logits: Floats) -> Candidates:
        """Every token, `logits` [vocab_size] being indexed by id. Nothing is copied."""
        return cls(_every_id(len(logits)), logits)

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, indices: NDArray[np.intp], *, descending: bool) -> Candidates:
        """Keep the candidates at these positions, in this order."""
        return Candidates(self.ids[indices], self.logits[indices], descending)

    def best(self, count: int) -> Candidates:
        """Keep the `count` highest logits, descending (fewer if the others are -inf)."""
        if self.descending:
            return Candidates(self.ids[:count], self.logits[:count], descending=True)
        return self.pick(largest(self.logits, count), descending=True)

    def peak(self) -> np.float32:
        """Return the highest logit."""
        highest: np.float32 = self.logits[0] if self.descending else self.logits.max()
        return highest

    def weights(self) -> Floats:
        """Probabilities up to a common factor [n]; the greatest is 1."""
        shifted: Floats = self.logits - self.peak()
        np.exp(shifted, out=shifted)
        return shifted


def largest(values: Floats, count: int) -> NDArray[np.intp]:
    """Find the positions of the `count` largest values, descending, ties by position.

    Values of -inf are never among them, so there may be fewer. No NaN must be present.
    """
    threshold = _lower_bound(values, min(count, len(values)))
    mask = values >= threshold if threshold > -np.inf else values > -np.inf
    positions = np.flatnonzero(mask)
    return positions[_descending_order(values[positions])[:count]]


def _lower_bound(values: Floats, count: int) -> np.float32:
    """Find a threshold that at least `count` values reach, and not many more unless they tie.

    The values are dealt into groups. The count-th largest group maximum is such a threshold,
    because that many groups contain a value reaching it. One pass of vectorised maxima over a
    vocabulary costs a tenth of a partition of it.
    """
    group_size = min(_MAX_GROUP_SIZE, len(values) // (_GROUPS_PER_RESULT * count))
    if group_size >= _MIN_GROUP_SIZE:
        num_groups = len(values) // group_size
        # Group g is column g: numpy takes maxima down columns a whole row at a time. The few
        # values left over can only make more values reach the threshold.
        dealt = values[: group_size * num_groups].reshape(group_size, num_groups)
        values = dealt.max(axis=0)
    threshold: np.float32 = np.partition(values, len(values) - count)[len(values) - count]
    return threshold


def _descending_order(values: Floats) -> NDArray[np.int64]:
    """Return the positions of `values` [n] from the largest value to the smallest, ties in order.

    Value and position are sorted as one integer: for thousands of values that is several times
    faster than a stable argsort.
    """
    bits = (np.float32(0) - values).view(np.int32)
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers ordered like the negated floats
    keys = (rising.astype(np.int64) << 32) | np.arange(len(values))
    keys.sort()
    positions: NDArray[np.int64] = keys & 0xFFFFFFFF
    return positions


@lru_cache(maxsize=4)
def _every_id(vocab_size: int) -> Ids:
    ids = np.arange(vocab_size, dtype=np.int64)
    ids.flags.writeable = False  # shared by all requests
    return ids
