"""How much memory compiling takes: told before an hour is spent on what cannot work."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.core.config import ModelConfig
from powerserve.core.errors import MemoryLimitError
from powerserve.storage.progress import format_bytes

# Measured (docs/decisions/npu-converter.md). Graphs that share weights stay in memory together, and
# each takes what its weights and its operations take.
BASE_BYTES = 180_000_000
LAYER_BYTES = 6_000_000
PARAMETER_BYTES = {4: 3.2, 8: 5.0, 16: 10.0}  # by bits of a weight


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Peaks of compilations, in bytes.

    Attributes:
        config: of the model.
        weight_bits, lm_head_bits: as QuantisationOptions has them.
        num_graphs: that are compiled together, at most.
    """

    config: ModelConfig
    weight_bits: int
    lm_head_bits: int
    num_graphs: int

    def chunk(self, num_layers: int, num_graphs: int | None = None) -> int:
        """Of a chunk; `num_graphs` if not all are compiled together."""
        layer = LAYER_BYTES + PARAMETER_BYTES[self.weight_bits] * layer_parameters(self.config)
        return BASE_BYTES + round((num_graphs or self.num_graphs) * num_layers * layer)

    def lm_head(self, num_graphs: int | None = None) -> int:
        """Of the LM head."""
        num_parameters = self.config.embed_dim * self.config.vocab_size
        graph = PARAMETER_BYTES[self.lm_head_bits] * num_parameters
        return BASE_BYTES + round((num_graphs or self.num_graphs) * graph)

    def check(self, num_chunks: int, available: int | None, *, with_lm_head: bool) -> None:
        """Make sure that the largest chunk and the LM head can be compiled.

        Args:
            num_chunks: how many parts the layers are cut into.
            available: bytes; None: unknown, so nothing is refused.
            with_lm_head: whether that is compiled.

        Raises:
            MemoryLimitError: with the number of chunks that would fit.
        """
        if available is None:
            return
        needed = self.chunk(largest_chunk(self.config.num_layers, num_chunks))
        if needed > available:
            what = "the model as one chunk" if num_chunks == 1 else f"one of {num_chunks} chunks"
            advice = self._chunk_advice(available)
            raise MemoryLimitError(_too_large(what, needed, available, advice))
        if with_lm_head and self.lm_head() > available:
            advice = "leave it to the CPU (--cpu-lm-head)"
            raise MemoryLimitError(_too_large("the LM head", self.lm_head(), available, advice))

    def fitting_chunks(self, available: int) -> int | None:
        """The least number of chunks whose largest can be compiled in `available` bytes."""
        num_layers = self.config.num_layers
        return next(
            (
                count
                for count in range(1, num_layers + 1)
                if self.chunk(largest_chunk(num_layers, count)) <= available
            ),
            None,
        )

    def _chunk_advice(self, available: int) -> str:
        fitting = self.fitting_chunks(available)
        if fitting is None:
            return "that is too little for a single layer; fewer --batch-sizes take less"
        return f"cut the model into {fitting} chunks (--n-model-chunks {fitting})"


def layer_parameters(config: ModelConfig) -> int:
    """Weights in the matrices of one layer."""
    q_dim = config.num_heads * config.head_dim
    attention = config.embed_dim * (2 * q_dim + 2 * config.kv_dim)
    return attention + 3 * config.embed_dim * config.ffn_dim


def largest_chunk(num_layers: int, num_chunks: int) -> int:
    """Layers of the largest chunk."""
    return -(-num_layers // num_chunks)


def _too_large(what: str, needed: int, available: int, advice: str) -> str:
    return (
        f"compiling {what} takes about {format_bytes(needed)}, and {format_bytes(available)} are "
        f"free; {advice}"
    )
