"""PowerServe: language models on the machine in front of you.

`LLM` and the other names are imported when they are first used, so that `powerserve --version`
does not wait for numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from powerserve.engine.generation import Completion
    from powerserve.engine.loader import LoadOptions
    from powerserve.llm import LLM
    from powerserve.sampler.grammar import Grammar
    from powerserve.sampler.params import SamplingParams
    from powerserve.speculative.options import SpeculationMode, SpeculationOptions

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Completion",
    "Grammar",
    "LoadOptions",
    "SamplingParams",
    "SpeculationMode",
    "SpeculationOptions",
    "__version__",
]

_HOMES = {
    "LLM": "powerserve.llm",
    "Completion": "powerserve.engine.generation",
    "Grammar": "powerserve.sampler.grammar",
    "LoadOptions": "powerserve.engine.loader",
    "SpeculationMode": "powerserve.speculative.options",
    "SpeculationOptions": "powerserve.speculative.options",
    "SamplingParams": "powerserve.sampler.params",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
