"""What every backend asks of its inputs before it trusts them."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from powerserve.backend.base import Batch, StepShape, Weights, WeightTensor
from powerserve.core.dtypes import BF16, F16, F32
from powerserve.core.errors import ModelFileError, UnsupportedModelError
from powerserve.graph import Graph, Weight

_PLAIN_TYPES = (F32, F16, BF16)


def check_weights(graph: Graph, weights: Weights) -> None:
    """Make sure that every weight the graph reads is there, in its shape and a usable type.

    Raises:
        ModelFileError: a tensor is missing, or has another shape or size than the graph needs.
        UnsupportedModelError: a tensor's type cannot be multiplied.
    """
    for weight in graph.weights().values():
        tensor = weights.get(weight.name)
        if tensor is None:
            raise ModelFileError(
                f"the model file has no tensor {weight.name}, which its model needs"
            )
        _check_tensor(weight, tensor)


def _check_tensor(weight: Weight, tensor: WeightTensor) -> None:
    if tuple(tensor.shape) != weight.shape:
        raise ModelFileError(
            f"tensor {weight.name} has shape {list(tensor.shape)}, "
            f"but the model's sizes need {list(weight.shape)}"
        )
    if not (tensor.dtype.is_quantised or tensor.dtype in _PLAIN_TYPES):
        raise UnsupportedModelError(
            f"tensor {weight.name} has type {tensor.dtype}, which cannot be multiplied; "
            "convert the model to F16 or a quantised type"
        )
    if weight.shape[-1] % tensor.dtype.block_size:
        raise ModelFileError(
            f"the rows of tensor {weight.name} have {weight.shape[-1]} elements, "
            f"which is not a whole number of {tensor.dtype} blocks"
        )
    expected_bytes = tensor.dtype.size_bytes(prod(weight.shape))
    if tensor.data.nbytes != expected_bytes:
        raise ModelFileError(
            f"tensor {weight.name} holds {tensor.data.nbytes} bytes instead of {expected_bytes}; "
            "the file may be truncated"
        )


def check_batch(batch: Batch, shape: StepShape, vocab_size: int) -> None:
    """Make sure that a batch is consistent and fits the shape it runs under.

    Costs O(tokens + visible cells): for backends that have the time, and for tests.

    Raises ValueError: what builds batches is at fault, not the user.
    """
    num_tokens = len(batch.token_ids)
    _require(num_tokens <= shape.num_tokens, f"{num_tokens} tokens exceed {shape}")
    _require(len(batch.output_rows) <= shape.num_outputs, f"too many output rows for {shape}")
    _require(len(batch.positions) == len(batch.cells) == num_tokens, "array lengths differ")
    _require(_within(batch.token_ids, vocab_size), "a token id is outside the vocabulary")
    _require(_within(batch.output_rows, num_tokens), "an output row is outside the batch")
    _require(len(np.unique(batch.cells)) == num_tokens, "two tokens share a cell")
    start = 0
    _require(len(batch.slices) == len(shape.slices), f"the number of slices is not that of {shape}")
    for part, compiled in zip(batch.slices, shape.slices, strict=True):
        _require(part.start == start, "slices do not follow each other")
        _require(_precede(part.parents), "a parent does not precede its child")
        start += len(part.parents)
        cells = np.concatenate([part.context, batch.cells[part.start : start]])
        if part.cached_ancestors is not None:
            earlier = part.cached_ancestors
            _require(len(earlier) == len(part.parents), "not every token has its ancestors")
            cells = np.concatenate([cells, earlier[earlier >= 0]])
        inside = (cells >= part.first_cell) & (cells < part.stop_cell)
        _require(bool(inside.all()), "a cell is outside the range of its slice")
        _require(part.first_cell >= compiled.first_cell, "a slice begins before its shape")
        stop_cell = compiled.first_cell + compiled.num_cells
        _require(part.stop_cell <= stop_cell, "a slice reaches past its shape")
    _require(start == num_tokens, "slices do not cover the batch")


def _within(indices: npt.NDArray[np.integer], limit: int) -> bool:
    return bool(((indices >= 0) & (indices < limit)).all())


def _precede(parents: npt.NDArray[np.integer]) -> bool:
    return bool(((parents >= -1) & (parents < np.arange(len(parents)))).all())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
