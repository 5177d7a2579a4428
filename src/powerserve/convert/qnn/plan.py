"""What is to be made of a model: its parts, their batch sizes, and what the files are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from powerserve.backend.qnn.tensors import ChunkShape, GraphSpec, chunk_spec, lm_head_spec
from powerserve.core.config import ModelConfig
from powerserve.core.errors import UsageError

DEFAULT_BATCH_SIZES = (1, 12, 128)
DEFAULT_CACHE_SIZE = 1920
DEFAULT_CONTEXT_SIZE = 2048
LM_HEAD = "lm_head"


@dataclass(frozen=True, slots=True)
class GraphSizes:
    """What graphs are compiled for: batch sizes ascending; see ChunkShape for the rest."""

    batch_sizes: tuple[int, ...] = DEFAULT_BATCH_SIZES
    cache_size: int = DEFAULT_CACHE_SIZE
    context_size: int = DEFAULT_CONTEXT_SIZE

    def __post_init__(self) -> None:
        """Raises UsageError if the sizes contradict each other."""
        largest = self.batch_sizes[-1]
        if largest > self.cache_size:
            raise UsageError(
                f"a batch of {largest} is larger than the cache of {self.cache_size}; use smaller "
                "--batch-sizes or a larger --cache-size"
            )
        if self.cache_size + largest > self.context_size:
            raise UsageError(
                f"a cache of {self.cache_size} and a batch of {largest} do not fit into a context "
                f"of {self.context_size}; use --context-size {self.cache_size + largest} or more"
            )


@dataclass(frozen=True, slots=True)
class Part:
    """A chunk of layers, or the LM head, which has none.

    Attributes:
        label: what people are told.
        folder: of its files, below the build folder.
        stem: of its binary's name.
        start_layer, end_layer: layers start … end - 1.
    """

    label: str
    folder: str
    stem: str
    start_layer: int
    end_layer: int

    @property
    def is_lm_head(self) -> bool:
        """Whether it is no chunk."""
        return self.start_layer == self.end_layer


@dataclass(frozen=True, slots=True)
class Plan:
    """A model cut into parts, in the order in which they are computed."""

    config: ModelConfig
    sizes: GraphSizes
    parts: tuple[Part, ...]

    @property
    def chunks(self) -> tuple[Part, ...]:
        """The parts with layers."""
        return tuple(part for part in self.parts if not part.is_lm_head)

    @property
    def lm_head(self) -> Part | None:
        """The output layer, unless it stays on the CPU."""
        return next((part for part in self.parts if part.is_lm_head), None)

    def shape(self, part: Part, batch_size: int) -> ChunkShape:
        """The sizes of a chunk's graph."""
        sizes = self.sizes
        return ChunkShape(
            part.start_layer, part.end_layer, batch_size, sizes.cache_size, sizes.context_size
        )

    def spec(self, part: Part, batch_size: int) -> GraphSpec:
        """The tensors of a part's graph."""
        if part.is_lm_head:
            return lm_head_spec(self.config, batch_size)
        return chunk_spec(self.config, self.shape(part, batch_size))


def make_plan(
    config: ModelConfig, name: str, num_chunks: int, sizes: GraphSizes, *, with_lm_head: bool
) -> Plan:
    """Cut a model into chunks of nearly equal length; `name` begins their binaries' names.

    Raises:
        UsageError: there are fewer layers than chunks.
    """
    if num_chunks > config.num_layers:
        raise UsageError(
            f"{num_chunks} chunks are too many for {config.num_layers} layers; "
            f"use --n-model-chunks {config.num_layers} or less"
        )
    bounds = [config.num_layers * index // num_chunks for index in range(num_chunks + 1)]
    parts = [
        Part(f"chunk {index}", f"model_chunk_{index}", f"{name}_{index}", start, end)
        for index, (start, end) in enumerate(pairwise(bounds))
    ]
    if with_lm_head:
        parts.append(Part("LM head", LM_HEAD, LM_HEAD, config.num_layers, config.num_layers))
    return Plan(config, sizes, tuple(parts))


def sorted_batch_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Each once, ascending."""
    return tuple(sorted(set(batch_sizes)))
