"""What every backend offers: load weights, hold a KV cache, compile a graph for a shape, run it.

A new backend is a folder with these four classes and an implementation of each operation in
`graph/ops.py`. The batch says *logically* what each token may see; how that becomes a mask, and how
cells are laid out in memory, is the backend's own business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.graph import Graph

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


class WeightTensor(Protocol):
    """A tensor as it lies in a model file: row-major `shape`, raw bytes `data` (uint8, 1-D)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def data(self) -> npt.NDArray[np.uint8]: ...


Weights = Mapping[str, WeightTensor]


@dataclass(frozen=True, slots=True)
class BatchSlice:
    """The tokens of one sequence within a batch, and what they may see.

    Tokens `start … start + len(parents)` of the batch belong to this sequence. Each sees every cell
    in `context` (int64: the sequence's cached tokens), itself, and its ancestors: `parents[i]` is
    the index within the slice of token i's parent, or -1 for a token that follows the context. A
    prompt chunk is the chain -1, 0, 1, …; a token tree has siblings. A parent precedes its child.

    A tree may also be computed in several steps: `cached_ancestors` [tokens, depth] then holds, for
    each token, the cells of its ancestors from earlier steps, and -1 where it has fewer.
    """

    start: int
    context: Int64Array
    parents: Int32Array
    first_cell: int  # every cell of context and slice is in first_cell … stop_cell - 1
    stop_cell: int
    cached_ancestors: Int64Array | None = None

    @property
    def is_chain(self) -> bool:
        """Whether every token follows the one before it."""
        return bool((self.parents == np.arange(-1, len(self.parents) - 1)).all())


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's input: tokens of one or more sequences.

    Attributes:
        token_ids: int32 [T].
        positions: int32 [T], logical positions (RoPE).
        cells: int64 [T], the cache cell each token's K and V are written to.
        slices: one per sequence, covering the T tokens in order.
        output_rows: int32 [N], indices of the tokens whose logits are wanted, ascending.
    """

    token_ids: Int32Array
    positions: Int32Array
    cells: Int64Array
    slices: Sequence[BatchSlice]
    output_rows: Int32Array


class SliceShape(NamedTuple):
    """The sizes one slice is compiled for: at most `num_tokens`, which see cells of one range."""

    num_tokens: int
    first_cell: int
    num_cells: int  # cells first_cell … first_cell + num_cells - 1 can be seen


class StepShape(NamedTuple):
    """The sizes a graph is compiled for.

    A batch has the same slices in the same order and, but for the last slice, as many tokens; the
    last slice and the outputs may be fewer. Without logits steps are run for what the graph
    observes, and a backend may leave the output layer out.
    """

    slices: tuple[SliceShape, ...]
    num_outputs: int
    has_logits: bool = True

    @property
    def num_tokens(self) -> int:
        """Tokens of all slices."""
        return sum(piece.num_tokens for piece in self.slices)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; the engine plans within it."""

    kv_dtypes: tuple[DType, ...]
    max_batch_tokens: int | None = None  # None: no limit
    max_cells: int | None = None
    compiles: bool = True  # False: only precompiled shapes (`batch_sizes`)
    batch_sizes: tuple[int, ...] = ()


class Cache(ABC):
    """K and V of `num_cells` cells in every layer. Layout is private to the backend."""

    num_cells: int
    size_bytes: int

    @abstractmethod
    def copy(self, source: Int64Array, target: Int64Array) -> None:
        """Copy cells source[i] to target[i] in every layer; all are read before any is written."""

    @abstractmethod
    def save(self, cells: Int64Array) -> bytes:
        """The content of these cells as bytes, for `restore` into a like cache."""

    @abstractmethod
    def restore(self, cells: Int64Array, content: bytes) -> None:
        """Write saved content into these cells; raises BackendError if its size does not fit."""

    def close(self) -> None:  # noqa: B027
        """Release the memory; no executable over this cache may run afterwards."""


class StepInterrupted(Exception):
    """A step was stopped by `Backend.interrupt`; what it computed is worthless."""


class OperationTime(NamedTuple):
    """One operation of a step."""

    operation: str  # the backend's name for it
    weight: str  # what it multiplies with, if that is a weight
    seconds: float


class Executable(ABC):
    """A graph compiled for one shape and one cache."""

    @abstractmethod
    def run(self, batch: Batch) -> FloatArray:
        """Compute one step; logits [len(batch.output_rows), vocab], valid until the next run.

        What comes back means nothing if the shape has no logits.
        """

    @abstractmethod
    def profile(self, batch: Batch) -> list[OperationTime]:
        """Compute one step as `run` does, operation by operation, and time each.

        Together they may take longer than a step that is not looked at.
        """

    def observed(self) -> Mapping[str, FloatArray]:
        """The graph's observed values as the last run left them, valid until the next run.

        Tokens that pad a batch to its shape count like others.
        """
        return {}

    def close(self) -> None:  # noqa: B027 - releasing nothing is a fine default
        """Release what the compiled graph holds."""


@dataclass(frozen=True, slots=True, eq=False)
class ComputedPrefix:
    """Tokens whose K and V come with a model: a prompt that begins with them need not compute them.

    `content` is what `Cache.save` gives for their cells.
    """

    token_ids: Int32Array
    content: bytes


class LoadedModel(ABC):
    """A model's weights inside a backend."""

    config: ModelConfig
    capabilities: Capabilities
    weights_bytes: int  # memory held by weights
    prefix: ComputedPrefix | None = None

    @abstractmethod
    def new_cache(self, num_cells: int, dtype: DType) -> Cache:
        """A cache of `num_cells` cells; raises MemoryLimitError if it cannot be had."""

    @abstractmethod
    def compile(self, shape: StepShape, cache: Cache) -> Executable:
        """Prepare the model's graph for steps of this shape over this cache."""

    @abstractmethod
    def close(self) -> None:
        """Release everything; the model and what came from it cannot be used afterwards."""


class Backend(ABC):
    """A way to execute graphs on some device."""

    name: str
    num_threads: int = 1  # CPU threads that a step may use

    @abstractmethod
    def load(self, config: ModelConfig, graph: Graph, weights: Weights) -> LoadedModel:
        """Take the graph's weights in; raises BackendError or UnsupportedModelError."""

    @property
    def kind_of_cells(self) -> str:
        """Differs where KV cells of one model and type would hold something else."""
        return self.name

    @property
    def device(self) -> str:
        """What runs the steps: whatever changes their cost, for those who measure it."""
        return f"{self.name}, {self.num_threads} threads"

    def interrupt(self) -> None:  # noqa: B027 - steps that cannot be stopped run to their end
        """Make the running step, and every later one, raise StepInterrupted; from any thread."""

    def resume(self) -> None:  # noqa: B027
        """Let steps run again after an interrupt."""

    def close(self) -> None:  # noqa: B027
        """Release the device's threads and handles; its models must be closed before."""
