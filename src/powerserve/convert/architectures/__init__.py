"""One file per family of checkpoints, and the registry of all."""

from __future__ import annotations

from typing import Final

from powerserve.convert.architectures.base import Architecture, RowOrder
from powerserve.convert.architectures.internlm2 import INTERNLM2
from powerserve.convert.architectures.llama import LLAMA
from powerserve.convert.architectures.qwen2 import QWEN2
from powerserve.convert.architectures.qwen3 import QWEN3
from powerserve.core.errors import UnsupportedModelError

__all__ = ["Architecture", "RowOrder", "architecture_of", "checkpoint_names"]

_ARCHITECTURES: Final = (LLAMA, QWEN2, QWEN3, INTERNLM2)


def checkpoint_names() -> tuple[str, ...]:
    """The classes of transformers whose checkpoints can be converted."""
    return tuple(sorted(name for each in _ARCHITECTURES for name in each.checkpoint_names))


def architecture_of(checkpoint_name: str) -> Architecture:
    """The architecture of a class of transformers; raises UnsupportedModelError."""
    for each in _ARCHITECTURES:
        if checkpoint_name in each.checkpoint_names:
            return each
    raise UnsupportedModelError(
        f"checkpoints of the architecture {checkpoint_name[:100]!r} cannot be converted; "
        f"known are {', '.join(checkpoint_names())}"
    )
