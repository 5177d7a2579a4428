"""Which parts of a model stay in floating point although the rest is quantised.

A few attention heads and feed-forward neurons carry activations far larger than all others. Kept
apart, they no longer set the range of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from powerserve.core.config import ModelConfig
from powerserve.graph import Weight

Indices = npt.NDArray[np.intp]
_LAYER_WEIGHT = re.compile(r"blk\.(\d+)\.(attn|ffn)_(\w+)\.weight")


@dataclass(frozen=True, slots=True)
class Group:
    """Some features of a tensor, ascending, which are computed in the same precision."""

    indices: Indices
    is_float: bool


@dataclass(frozen=True, slots=True)
class FloatParts:
    """Layers, query heads and feed-forward neurons that are not quantised.

    Keys and values that a listed head shares with others are not quantised either.
    """

    attention_layers: frozenset[int] = frozenset()
    ffn_layers: frozenset[int] = frozenset()
    heads: Mapping[int, frozenset[int]] = field(default_factory=dict)  # by layer
    neurons: Mapping[int, frozenset[int]] = field(default_factory=dict)  # by layer

    def row_groups(self, config: ModelConfig, weight: Weight) -> list[Group]:
        """The output features of a matrix by precision: one or two groups that cover them."""
        num_rows = weight.shape[0]
        match = _LAYER_WEIGHT.fullmatch(weight.name)
        if match is None:
            return [Group(np.arange(num_rows), False)]
        layer, half, name = int(match[1]), match[2], match[3]
        if layer in (self.attention_layers if half == "attn" else self.ffn_layers):
            return [Group(np.arange(num_rows), True)]
        return _groups(self._float_rows(config, layer, name, num_rows))

    def _float_rows(
        self, config: ModelConfig, layer: int, name: str, num_rows: int
    ) -> npt.NDArray[np.bool_]:
        """Which rows belong to something that is listed."""
        heads = np.array(sorted(self.heads.get(layer, ())), np.intp)
        neurons = np.array(sorted(self.neurons.get(layer, ())), np.intp)
        match name:
            case "q":
                listed, width = heads, config.head_dim
            case "k" | "v":
                listed, width = heads // (config.num_heads // config.num_kv_heads), config.head_dim
            case "gate" | "up":
                listed, width = neurons, 1
            case _:
                listed, width = np.empty(0, np.intp), 1
        marks = np.zeros(num_rows // width, bool)
        marks[listed] = True
        return np.repeat(marks, width)


def _groups(is_float: npt.NDArray[np.bool_]) -> list[Group]:
    groups = [Group(np.flatnonzero(is_float == value), value) for value in (False, True)]
    return [group for group in groups if len(group.indices)]
