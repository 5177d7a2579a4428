"""Which tensors of a checkpoint become which tensors of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from powerserve.convert.architectures import Architecture, RowOrder
from powerserve.convert.model_config import CheckpointConfig
from powerserve.convert.rope import FACTORS_NAME, rope_factors
from powerserve.core.errors import ModelFileError, UnsupportedModelError
from powerserve.storage.safetensors import SafeTensor

EMBEDDING_NAME = "token_embd.weight"
_OUTPUT_NAME = "output.weight"
# Old checkpoints carry RoPE's frequencies along, although they follow from the configuration.
_COMPUTED = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to write: `source`, with its rows in the order `rows` if that is given."""

    name: str
    shape: tuple[int, ...]
    source: SafeTensor
    rows: npt.NDArray[np.intp] | None = None


def plan_tensors(
    architecture: Architecture,
    config: CheckpointConfig,
    tensors: Mapping[str, SafeTensor],
    *,
    only_embedding: bool = False,
) -> list[PlannedTensor]:
    """The tensors of the GGUF file in order.

    Raises ModelFileError for a tensor that is missing or has the wrong shape, and
    UnsupportedModelError for one that the architecture has no place for.
    """
    planner = _Planner(architecture, config, tensors)
    if only_embedding:
        return [planner.required(EMBEDDING_NAME)]
    planned = list(planner.all())
    planner.check_leftovers()
    return planned


class _Planner:
    """Maps one checkpoint, and remembers which of its tensors found a place."""

    def __init__(
        self,
        architecture: Architecture,
        config: CheckpointConfig,
        tensors: Mapping[str, SafeTensor],
    ) -> None:
        self._architecture = architecture
        self._config = config
        self._tensors = tensors
        self._shapes = _shapes(config)
        self._used: set[str] = set()

    def all(self) -> Iterator[PlannedTensor]:
        yield self.required(EMBEDDING_NAME)
        yield self.required("output_norm.weight")
        yield from self._output()
        yield from self._rope_factors()
        names = (*_LAYER_TENSORS, *self._architecture.required, *self._optional())
        for layer in range(self._config.num_layers):
            for name in names:
                yield self.required(name, layer)

    def required(self, name: str, layer: int = 0) -> PlannedTensor:
        source_name = self._source_name(name, layer)
        source = self._tensors.get(source_name)
        if source is None:
            raise ModelFileError(f"the checkpoint has no tensor {source_name}: it is incomplete")
        self._used.add(source_name)
        order = self._row_order(name)
        shape = self._shapes[name]
        expected = shape if order is None else (order.num_rows, *shape[1:])
        if source.shape != expected:
            raise ModelFileError(
                f"{source_name} has shape {list(source.shape)}, but {list(expected)} follows "
                "from config.json"
            )
        rows = None if order is None else order.indices
        return PlannedTensor(name.format(layer), shape, source, rows)

    def check_leftovers(self) -> None:
        """Refuse to leave out anything that has an effect: the result would compute nonsense."""
        for name, tensor in self._tensors.items():
            has_no_effect = (
                name in self._used
                or name.endswith(_COMPUTED)
                or (name.endswith(".bias") and not tensor.data.any())
            )
            if not has_no_effect:
                raise UnsupportedModelError(
                    f"the checkpoint has a tensor {name}, for which the architecture "
                    f"{self._architecture.gguf_name} has no place"
                )

    def _optional(self) -> tuple[str, ...]:
        """The optional tensors, if the first layer has one of them: then all layers need all."""
        names = self._architecture.optional
        is_there = any(self._source_name(name, 0) in self._tensors for name in names)
        return names if is_there else ()

    def _output(self) -> Iterator[PlannedTensor]:
        """The output layer, unless it is the embedding table; a copy of that is left out."""
        source_name = self._source_name(_OUTPUT_NAME, 0)
        tied = self._config.tied_embeddings
        if tied is None:
            tied = source_name not in self._tensors
        if tied:
            self._used.add(source_name)
        else:
            yield self.required(_OUTPUT_NAME)

    def _rope_factors(self) -> Iterator[PlannedTensor]:
        factors = rope_factors(self._config)
        if factors is not None:
            source = SafeTensor(FACTORS_NAME, factors.shape, "F32", factors.view(np.uint8))
            yield PlannedTensor(FACTORS_NAME, factors.shape, source)

    def _source_name(self, name: str, layer: int) -> str:
        stem, _, kind = name.rpartition(".")
        return f"{self._architecture.names[stem].format(layer)}.{kind}"

    def _row_order(self, name: str) -> RowOrder | None:
        make = self._architecture.row_orders.get(name.rpartition(".")[0])
        return None if make is None else make(self._config)


_LAYER_TENSORS = (
    "blk.{}.attn_norm.weight",
    "blk.{}.attn_q.weight",
    "blk.{}.attn_k.weight",
    "blk.{}.attn_v.weight",
    "blk.{}.attn_output.weight",
    "blk.{}.ffn_norm.weight",
    "blk.{}.ffn_gate.weight",
    "blk.{}.ffn_up.weight",
    "blk.{}.ffn_down.weight",
)


def _shapes(config: CheckpointConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, [out, in] for matrices, by its GGUF name; `{}` is the layer."""
    embed, ffn = config.embed_dim, config.ffn_dim
    q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        EMBEDDING_NAME: (config.vocab_size, embed),
        "output_norm.weight": (embed,),
        _OUTPUT_NAME: (config.vocab_size, embed),
        "blk.{}.attn_norm.weight": (embed,),
        "blk.{}.attn_q.weight": (q_dim, embed),
        "blk.{}.attn_q.bias": (q_dim,),
        "blk.{}.attn_k.weight": (kv_dim, embed),
        "blk.{}.attn_k.bias": (kv_dim,),
        "blk.{}.attn_v.weight": (kv_dim, embed),
        "blk.{}.attn_v.bias": (kv_dim,),
        "blk.{}.attn_q_norm.weight": (config.head_dim,),
        "blk.{}.attn_k_norm.weight": (config.head_dim,),
        "blk.{}.attn_output.weight": (embed, q_dim),
        "blk.{}.ffn_norm.weight": (embed,),
        "blk.{}.ffn_gate.weight": (ffn, embed),
        "blk.{}.ffn_up.weight": (ffn, embed),
        "blk.{}.ffn_down.weight": (embed, ffn),
    }
