"""Which tensor of a model becomes what: decided from names and shapes, before any work is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from powerserve.convert.recipes import (
    Place,
    Recipe,
    fitting_dtype,
    matrix_dtype,
    output_dtype,
)
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError
from powerserve.storage.gguf import GGUFFile, TensorInfo
from powerserve.storage.gguf_writer import TensorHeader

OUTPUT = "output.weight"
EMBEDDING = "token_embd.weight"

_LAYER_PART = re.compile(r"blk\.(?P<layer>\d+)\.(?P<part>\w+?)(?:_exps|_shexp)?\.weight")
# Matrices that are small and sensitive, so that llama.cpp leaves them alone as well.
_KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ssm_conv1d|attn_rel_b\.weight"
    r"|^position_embd\.weight|^token_types\.weight"
)


@dataclass(frozen=True, slots=True)
class TypeChoices:
    """What the user decides beside the recipe."""

    pure: bool = False  # the recipe's own type for every matrix
    output: DType | None = None  # of the output layer
    embedding: DType | None = None


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One tensor, and the type it is to have."""

    source: TensorInfo
    dtype: DType

    @property
    def changes(self) -> bool:
        """Whether its data must be computed; otherwise it is copied."""
        return self.source.dtype != self.dtype

    @property
    def header(self) -> TensorHeader:
        """How it will stand in the new file."""
        return TensorHeader(self.source.name, self.source.shape, self.dtype)


def plan_types(
    model: GGUFFile, recipe: Recipe, choices: TypeChoices, *, has_importance: bool
) -> list[TensorPlan]:
    """The plan for every tensor, in the order of the file.

    Raises UsageError if a type the user chose does not fit the rows of its matrix.
    """
    planner = _Planner(model, recipe, choices, has_importance)
    return [TensorPlan(tensor, planner.dtype(tensor)) for tensor in model.tensors.values()]


def is_matrix(tensor: TensorInfo) -> bool:
    """Whether a tensor is one that quantisation is for."""
    is_weight = tensor.name.endswith(".weight") and not _KEPT.search(tensor.name)
    return is_weight and any(size > 1 for size in tensor.shape[:-1])


class _Planner:
    def __init__(
        self, model: GGUFFile, recipe: Recipe, choices: TypeChoices, has_importance: bool
    ) -> None:
        self._recipe = recipe
        self._choices = choices
        self._has_importance = has_importance
        self._is_tied = OUTPUT not in model.tensors
        self._queries_per_kv = _queries_per_kv(model.metadata)
        layers = {int(match["layer"]) for match in map(_LAYER_PART.match, model.tensors) if match}
        self._num_layers = len(layers)

    def dtype(self, tensor: TensorInfo) -> DType:
        if not is_matrix(tensor):
            return tensor.dtype
        chosen = self._chosen(tensor.name)
        if chosen is not None:
            return _checked(chosen, tensor)
        wanted = self._recipe.dtype if self._choices.pure else self._mixed(tensor)
        return fitting_dtype(wanted, tensor.shape[-1])

    def _chosen(self, name: str) -> DType | None:
        """What the user chose for this tensor; a tied table is embedding and output at once."""
        if name == EMBEDDING:
            output = self._choices.output if self._is_tied else None
            return self._choices.embedding or output
        return self._choices.output if name == OUTPUT else None

    def _mixed(self, tensor: TensorInfo) -> DType:
        if tensor.name == OUTPUT or (tensor.name == EMBEDDING and self._is_tied):
            return output_dtype(self._recipe, tensor.shape[-1])
        match = _LAYER_PART.fullmatch(tensor.name)
        if match is None:
            return self._recipe.dtype
        place = Place(
            int(match["layer"]), self._num_layers, self._queries_per_kv, self._has_importance
        )
        return matrix_dtype(self._recipe, match["part"], place)


def _checked(dtype: DType, tensor: TensorInfo) -> DType:
    if tensor.shape[-1] % dtype.block_size:
        raise UsageError(
            f"{tensor.name} has rows of {tensor.shape[-1]} elements, which is not a whole number "
            f"of {dtype} blocks of {dtype.block_size}; choose another type for it"
        )
    return dtype


def _queries_per_kv(metadata: Mapping[str, Any]) -> int:
    """Query heads for each key head in the first layer; 1 if the file does not tell."""
    prefix = f"{metadata.get('general.architecture')}.attention"
    heads = metadata.get(f"{prefix}.head_count", 1)
    kv_heads = metadata.get(f"{prefix}.head_count_kv", heads)
    heads, kv_heads = (int(np.ravel(value)[0]) for value in (heads, kv_heads))
    return heads // kv_heads if kv_heads else 1
