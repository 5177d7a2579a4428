"""Choosing the next token, and noticing where text must end."""

from powerserve.sampler.chain import Sampled, SamplerChain
from powerserve.sampler.constraint import Constraint
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.sampler.params import DEFAULT_STAGES, SamplingParams
from powerserve.sampler.stop_text import StopMatcher
from powerserve.sampler.token_mask import TokenMask

__all__ = [
    "DEFAULT_STAGES",
    "Constraint",
    "Grammar",
    "GrammarKind",
    "Sampled",
    "SamplerChain",
    "SamplingParams",
    "StopMatcher",
    "TokenMask",
]
