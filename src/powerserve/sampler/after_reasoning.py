"""A grammar for the answer of a model that thinks before it answers."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np

from powerserve.sampler.constraint import Constraint
from powerserve.sampler.token_mask import TokenMask


class AfterReasoning:
    """Leaves reasoning free and holds the answer after it to another constraint.

    The text begins with reasoning if the prompt has opened it, or if the first token opens it;
    else it begins with the answer. Implements `Constraint`.
    """

    def __init__(
        self, answer: Constraint, *, opening_id: int, closing_id: int, starts_inside: bool
    ) -> None:
        """`opening_id` and `closing_id` are the tokens of the tags around reasoning."""
        self._answer = answer
        self._opening_id = opening_id
        self._closing_id = closing_id
        self._is_inside = starts_inside
        self._may_open = not starts_inside

    @property
    def is_complete(self) -> bool:
        """Whether only a stop token may follow."""
        return not self._is_inside and self._answer.is_complete

    def allowed(self) -> TokenMask | None:
        """The tokens that may come next, None for all; raises as the answer's constraint does."""
        if self._is_inside:
            return None
        mask = self._answer.allowed()
        return mask if mask is None or not self._may_open else _with(mask, self._opening_id)

    def accept(self, token_id: int) -> None:
        """Advance by one token."""
        opens = self._may_open and token_id == self._opening_id
        self._may_open = False
        if opens:
            self._is_inside = True
        elif self._is_inside:
            self._is_inside = token_id != self._closing_id
        else:
            self._answer.accept(token_id)

    def copy(self) -> Self:
        """Return the same state, independent of this one."""
        twin = copy.copy(self)
        twin._answer = self._answer.copy()
        return twin


def _with(mask: TokenMask, token_id: int) -> TokenMask:
    """The mask with one more token."""
    wider = mask.copy()
    if wider.dtype == np.bool_:
        wider[token_id] = True
    else:
        wider.view(np.uint32)[token_id // 32] |= np.uint32(1 << (token_id % 32))
    return wider
