"""From the logits of one position to one token."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from powerserve.core.errors import BackendError, UsageError
from powerserve.sampler.candidates import Candidates, Floats, Ids
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.logprobs import log_probabilities
from powerserve.sampler.params import SamplingParams
from powerserve.sampler.penalties import PenaltyWindow, penalised
from powerserve.sampler.randomness import UniformStream, draw
from powerserve.sampler.stages import build_stages
from powerserve.sampler.token_mask import masked


@dataclass(frozen=True, slots=True)
class Sampled:
    """A chosen token; the natural log-probabilities only if the request asked for them."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()  # (token id, logprob), descending


class SamplerChain:
    """The sampler of one sequence: parameters, grammar, recent tokens and random numbers.

    The order is: grammar, logit bias, penalties, then the filters in the order of
    `params.stages`, then one random draw. Greedy requests take the highest logit instead.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        vocab_size: int,
        eos_ids: Collection[int],
        newline_id: int | None,
        prompt: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        """`prompt` tokens count for the penalties; the chain advances `constraint` and owns it.

        Raises UsageError for a bias on no token, and for `ignore_eos` with a constraint.
        """
        if constraint is not None and params.ignore_eos:
            raise UsageError("ignore_eos cannot be combined with a grammar, which ends the text")
        self.params = params
        self._constraint = constraint
        self._vocab_size = vocab_size
        self._bias_ids, self._biases = _bias_arrays(params, vocab_size, eos_ids)
        self._unpenalised_id = None if params.penalize_nl else newline_id
        self._window = _window(params, prompt)
        self._uniforms = UniformStream(params.seed)
        self._stages = build_stages(params, with_xtc=False)
        self._stages_with_xtc = build_stages(params, with_xtc=True)

    def sample(self, logits: Floats) -> Sampled:
        """Choose a token for `logits` [vocab_size], which are not modified.

        The choice counts for the grammar and the penalties only after `accept`. Raises
        BackendError if the logits are not numbers, UsageError if no token is left to choose.
        """
        adjusted = self._adjusted(logits)
        token_id = _finite_argmax(adjusted)
        if not self.params.is_greedy:
            candidates = self._filtered(adjusted)
            index = draw(candidates.weights(), self._uniforms.next())
            token_id = int(candidates.ids[index])
        if self.params.logprobs is None:
            return Sampled(token_id)
        return Sampled(token_id, *log_probabilities(logits, token_id, self.params.logprobs))

    def distribution(self, logits: Floats) -> tuple[Ids, NDArray[np.float64]]:
        """Return the ids [n] `sample` would draw from and their probabilities [n].

        Draws no random number, but for XTC's coin if XTC is on. Raises as `sample` does.
        """
        adjusted = self._adjusted(logits)
        best = _finite_argmax(adjusted)
        if self.params.is_greedy:
            return np.array([best]), np.ones(1)
        candidates = self._filtered(adjusted)
        weights = candidates.weights().astype(np.float64)
        return candidates.ids, weights / weights.sum()

    def accept(self, token_id: int) -> None:
        """Note that the sequence continues with this token."""
        if self._constraint is not None:
            self._constraint.accept(token_id)
        if self._window is not None:
            self._window.push(token_id)

    def copy(self) -> SamplerChain:
        """Return a chain in the same state; what happens to one does not affect the other."""
        twin = copy.copy(self)
        twin._uniforms = self._uniforms.copy()
        twin._window = None if self._window is None else self._window.copy()
        twin._constraint = None if self._constraint is None else self._constraint.copy()
        return twin

    def _adjusted(self, logits: Floats) -> Floats:
        """Return the logits after grammar, bias and penalties; the same array if none applies."""
        if logits.shape != (self._vocab_size,):
            raise BackendError(
                f"the model returned logits of shape {logits.shape}; "
                f"its vocabulary has {self._vocab_size} tokens"
            )
        allowed = None if self._constraint is None else self._constraint.allowed()
        adjusted = logits if allowed is None else masked(logits, allowed)
        if not len(self._bias_ids) and self._window is None:
            return adjusted
        if adjusted is logits:
            adjusted = logits.copy()  # the array belongs to the backend
        adjusted[self._bias_ids] += self._biases
        if self._window is not None:
            ids, counts = self._window.counts(without=self._unpenalised_id)
            adjusted[ids] = penalised(adjusted[ids], counts, self.params)
        return adjusted

    def _filtered(self, adjusted: Floats) -> Candidates:
        candidates = Candidates.whole_vocabulary(adjusted)
        for stage in self._stages_with_xtc if self._xtc_strikes() else self._stages:
            candidates = stage(candidates)
        return candidates

    def _xtc_strikes(self) -> bool:
        chance = self.params.xtc_probability
        return chance > 0 and self._uniforms.next() < chance


def _bias_arrays(
    params: SamplingParams, vocab_size: int, eos_ids: Collection[int]
) -> tuple[Ids, Floats]:
    """Merge `logit_bias` and `ignore_eos` into ids [n] and summands [n]."""
    biases = dict(params.logit_bias)
    for token_id in biases:
        if token_id >= vocab_size:
            raise UsageError(
                f"logit_bias names token {token_id}, but the last token of this model "
                f"is {vocab_size - 1}"
            )
    if params.ignore_eos:
        biases.update(dict.fromkeys(eos_ids, -np.inf))
    ids = np.array(list(biases.keys()), dtype=np.int64)
    return ids, np.array(list(biases.values()), dtype=np.float32)


def _window(params: SamplingParams, prompt: Sequence[int]) -> PenaltyWindow | None:
    if not params.has_penalties:
        return None
    last_n = params.penalty_last_n
    return PenaltyWindow(last_n, prompt if last_n < 0 else prompt[-last_n:])


def _finite_argmax(logits: Floats) -> int:
    """Return the lowest id with the highest logit; numpy's argmax stops at a NaN, if any."""
    token_id = int(logits.argmax())
    if logits[token_id] == -np.inf:
        raise UsageError(
            "the grammar, logit_bias and ignore_eos of this request leave no token to choose"
        )
    if not np.isfinite(logits[token_id]):
        raise BackendError(
            "the model computed logits that are not finite numbers; "
            "its file may be damaged or the backend faulty"
        )
    return token_id
