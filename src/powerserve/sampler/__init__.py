"""Choosing the next token, and noticing where text must end."""

from powerserve.sampler.chain import Sampled, SamplerChain
from powerserve.sampler.params import DEFAULT_STAGES, SamplingParams
from powerserve.sampler.stop_text import StopMatcher
from powerserve.sampler.token_mask import TokenMask

__all__ = [
    "DEFAULT_STAGES",
    "Sampled",
    "SamplerChain",
    "SamplingParams",
    "StopMatcher",
    "TokenMask",
]
