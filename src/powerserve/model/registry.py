"""Which architectures are known, by their GGUF names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from powerserve.core.config import ModelConfig
from powerserve.core.errors import ModelFileError, UnsupportedModelError
from powerserve.graph import Graph, ShapeError
from powerserve.model.llama import build_llama
from powerserve.model.qwen2 import build_qwen2
from powerserve.model.qwen3 import build_qwen3

_BUILDERS: Final[Mapping[str, Callable[[ModelConfig], Graph]]] = {
    "llama": build_llama,
    "qwen2": build_qwen2,
    "qwen3": build_qwen3,
}


def architectures() -> tuple[str, ...]:
    """The GGUF names (`general.architecture`) of the architectures that can be run."""
    return tuple(sorted(_BUILDERS))


def build_graph(config: ModelConfig) -> Graph:
    """The computation of the model that `config` describes.

    Raises:
        UnsupportedModelError: the architecture is unknown.
        ModelFileError: the sizes in `config` contradict each other.
    """
    builder = _BUILDERS.get(config.architecture)
    if builder is None:
        raise UnsupportedModelError(
            f"architecture {config.architecture!r} is not supported; "
            f"known are {', '.join(architectures())}"
        )
    try:
        return builder(config)
    except ShapeError as error:
        raise ModelFileError(
            f"the sizes in the model file contradict each other: {error}"
        ) from None
