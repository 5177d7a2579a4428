"""Stat files: which heads and neurons carry the largest activations, and so should stay in float.

`attn_<layer>_stat.json` lists a layer's query heads, `ffn_<layer>_stat.json` its feed-forward
neurons, both as numbers in descending order of the sum of absolute activations: the original's
format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.convert.qnn.calibration import Calibration, observe_layers
from powerserve.convert.qnn.float_parts import FloatParts
from powerserve.convert.qnn.source import NpuModel
from powerserve.convert.qnn.statistics import LinearObserver
from powerserve.core.config import ModelConfig
from powerserve.core.errors import ConfigError, UsageError
from powerserve.storage.json_file import read_json, write_json


@dataclass(frozen=True, slots=True)
class OutlierCounts:
    """How many of each layer's most important heads and neurons stay in floating point."""

    num_heads: int = 0
    num_neurons: int = 0
    heads_by_layer: Mapping[int, int] = field(default_factory=dict)  # in place of `num_heads`
    neurons_by_layer: Mapping[int, int] = field(default_factory=dict)

    def heads(self, layer: int) -> int:
        """How many query heads of a layer."""
        return self.heads_by_layer.get(layer, self.num_heads)

    def neurons(self, layer: int) -> int:
        """How many feed-forward neurons of a layer."""
        return self.neurons_by_layer.get(layer, self.num_neurons)


def write_stat_files(model: NpuModel, calibration: Calibration, folder: Path) -> Iterator[int]:
    """Write the stat files of every layer into `folder`; yields each layer that is done."""
    for layer, seen in enumerate(observe_layers(model, calibration)):
        heads = _sums(seen, f"blk.{layer}.attn_output").reshape(model.config.num_heads, -1)
        write_json(_heads_file(folder, layer), _descending(heads.sum(axis=1)))
        write_json(_neurons_file(folder, layer), _descending(_sums(seen, f"blk.{layer}.ffn_down")))
        yield layer


def float_parts(
    folder: Path,
    config: ModelConfig,
    counts: OutlierCounts,
    attention_layers: frozenset[int] = frozenset(),
    ffn_layers: frozenset[int] = frozenset(),
) -> FloatParts:
    """Whole layers, and the first heads and neurons of every stat file in `folder`.

    Raises ConfigError for a file that is missing or not of this model, UsageError for more heads or
    neurons than there are.
    """
    heads, neurons = {}, {}
    for layer in range(config.num_layers):
        if count := counts.heads(layer):
            heads[layer] = _first(_heads_file(folder, layer), count, config.num_heads, "heads")
        if count := counts.neurons(layer):
            neurons[layer] = _first(_neurons_file(folder, layer), count, config.ffn_dim, "neurons")
    return FloatParts(attention_layers, ffn_layers, heads, neurons)


def _first(path: Path, count: int, num_known: int, what: str) -> frozenset[int]:
    """The first `count` numbers of a stat file."""
    if not 0 <= count <= num_known:
        raise UsageError(f"{count} {what} cannot stay in floating point: there are {num_known}")
    ids = read_json(path, list[int])
    if sorted(ids) != list(range(num_known)):
        raise ConfigError(
            f"{path} does not list the {num_known} {what} of this model: make it again with "
            "`powerserve qnn stat`"
        )
    return frozenset(ids[:count])


def _sums(seen: LinearObserver, name: str) -> npt.NDArray[np.float64]:
    return seen.statistics[name].input.absolute_sums


def _descending(sums: npt.NDArray[np.float64]) -> list[int]:
    order: list[int] = np.argsort(-sums, kind="stable").tolist()
    return order


def _heads_file(folder: Path, layer: int) -> Path:
    return folder / f"attn_{layer}_stat.json"


def _neurons_file(folder: Path, layer: int) -> Path:
    return folder / f"ffn_{layer}_stat.json"
