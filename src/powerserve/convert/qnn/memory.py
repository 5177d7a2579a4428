"""How much memory compiling takes: told before an hour is spent on what cannot work."""

from __future__ import annotations

from powerserve.core import machine
from powerserve.core.config import ModelConfig
from powerserve.core.errors import MemoryLimitError
from powerserve.storage.progress import format_bytes

# Measured (docs/decisions/npu-converter.md): the peak grows with the weights and layers of a chunk,
# and hardly with batch sizes, context or number of graphs.
BASE_BYTES = 150_000_000
BYTES_PER_LAYER = 30_000_000
BYTES_PER_PARAMETER = 27


def layer_parameters(config: ModelConfig) -> int:
    """Weights in the matrices of one layer."""
    q_dim = config.num_heads * config.head_dim
    attention = config.embed_dim * (2 * q_dim + 2 * config.kv_dim)
    return attention + 3 * config.embed_dim * config.ffn_dim


def chunk_memory(config: ModelConfig, num_layers: int) -> int:
    """Bytes that compiling a chunk of `num_layers` layers takes at its peak."""
    return BASE_BYTES + num_layers * (
        BYTES_PER_LAYER + BYTES_PER_PARAMETER * layer_parameters(config)
    )


def lm_head_memory(config: ModelConfig) -> int:
    """Bytes that compiling the LM head takes at its peak."""
    return BASE_BYTES + BYTES_PER_PARAMETER * config.embed_dim * config.vocab_size


def check_memory(
    config: ModelConfig, num_chunks: int, *, with_lm_head: bool, available: int | None = None
) -> None:
    """Make sure that the largest chunk and the LM head can be compiled.

    Args:
        config: of the model.
        num_chunks: how many parts its layers are cut into.
        with_lm_head: whether that is compiled.
        available: bytes; None: what the machine has free.

    Raises:
        MemoryLimitError: with the number of chunks that would fit.
    """
    free = machine.available_memory() if available is None else available
    if free is None:
        return
    needed = chunk_memory(config, largest_chunk(config.num_layers, num_chunks))
    if needed > free:
        what = "the model as one chunk" if num_chunks == 1 else f"one of {num_chunks} chunks"
        raise MemoryLimitError(_too_large(what, needed, free, _chunk_advice(config, free)))
    needed = lm_head_memory(config)
    if with_lm_head and needed > free:
        advice = "leave it to the CPU (--cpu-lm-head)"
        raise MemoryLimitError(_too_large("the LM head", needed, free, advice))


def fitting_chunks(config: ModelConfig, available: int) -> int | None:
    """The least number of chunks whose largest can be compiled in `available` bytes."""
    counts = range(1, config.num_layers + 1)
    return next(
        (
            count
            for count in counts
            if chunk_memory(config, largest_chunk(config.num_layers, count)) <= available
        ),
        None,
    )


def largest_chunk(num_layers: int, num_chunks: int) -> int:
    """Layers of the largest chunk."""
    return -(-num_layers // num_chunks)


def _chunk_advice(config: ModelConfig, free: int) -> str:
    fitting = fitting_chunks(config, free)
    if fitting is None:
        return "that is too little for a single layer of this model"
    return f"cut the model into {fitting} chunks (--n-model-chunks {fitting})"


def _too_large(what: str, needed: int, free: int, advice: str) -> str:
    return (
        f"compiling {what} takes about {format_bytes(needed)}, and {format_bytes(free)} are free; "
        f"{advice}"
    )
