"""How often proposals come true, learnt while they are verified."""

from __future__ import annotations

from collections.abc import Sequence


class Calibration:
    """Acceptance rates of kinds of candidates, `0 … len(prior) - 1`.

    Rates start at a prior and follow what is observed; old observations fade. So a kind that is no
    longer observed returns to its prior, which is how an abandoned proposer gets another chance.
    A calibration may rest on a broader one: what one request shows begins where all others are.
    """

    def __init__(
        self, prior: Sequence[float] | Calibration, *, strength: float, memory: float
    ) -> None:
        """Args:
        prior: rates before anything is observed, or the broader calibration.
        strength: observations that the prior weighs as much as.
        memory: observations after which a count has faded to a third.
        """
        self._prior = prior
        self._strength = strength
        self._keep = 1 - 1 / memory
        size = prior.size if isinstance(prior, Calibration) else len(prior)
        self._hits = [0.0] * size
        self._tries = [0.0] * size

    @property
    def size(self) -> int:
        """The number of kinds."""
        return len(self._hits)

    def rate(self, kind: int) -> float:
        """The estimated probability that a candidate of this kind is accepted."""
        prior = (
            self._prior.rate(kind) if isinstance(self._prior, Calibration) else self._prior[kind]
        )
        hits = self._hits[kind] + self._strength * prior
        return hits / (self._tries[kind] + self._strength)

    def observe(self, kind: int, accepted: bool) -> None:
        """Note that a candidate whose parent was accepted was accepted too, or not."""
        self._hits[kind] = self._hits[kind] * self._keep + accepted
        self._tries[kind] = self._tries[kind] * self._keep + 1
        if isinstance(self._prior, Calibration):
            self._prior.observe(kind, accepted)

    def fade(self, kind: int) -> None:
        """Let this kind's observations age by one without a new one."""
        self._hits[kind] *= self._keep
        self._tries[kind] *= self._keep
        if isinstance(self._prior, Calibration):
            self._prior.fade(kind)
