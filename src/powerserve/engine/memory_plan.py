"""How much memory a model will take, and the largest context that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from powerserve.core import dtypes
from powerserve.core.config import ModelConfig
from powerserve.core.dtypes import DType
from powerserve.core.errors import MemoryLimitError, UsageError

DEFAULT_CONTEXT = 8192  # tokens; more has to be asked for
MIN_CONTEXT = 256  # tokens; a smaller default would be of no use
USABLE_SHARE = 0.95  # of the available memory; the rest is for everything else
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Estimated bytes for a model with a cache of `num_cells` tokens, at least one context."""

    context_size: int
    num_cells: int
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int

    @property
    def total_bytes(self) -> int:
        """Everything together."""
        return self.weights_bytes + self.kv_bytes + self.compute_bytes


def plan_memory(
    config: ModelConfig,
    *,
    weights_bytes: int,
    kv_dtype: DType,
    batch_size: int,
    context_size: int | None,
    available_bytes: int | None,
    cache_size: int = 0,
) -> MemoryPlan:
    """Choose a context and check it; None: the least of trained length, 8192 and what fits.

    Args:
        config: the model.
        weights_bytes: memory for weights, a second copy of a tied table included.
        kv_dtype: element type of the cache.
        batch_size: tokens of the largest step.
        context_size: tokens asked for.
        available_bytes: memory that may be used; None: unknown, so nothing is refused.
        cache_size: tokens to cache for all sequences, if that is more than one context.

    Raises:
        MemoryLimitError: it does not fit; the text names a context that would.
        UsageError: the context is not positive.
    """
    if context_size is not None and context_size < 1:
        raise UsageError(f"the context size must be at least 1 token, not {context_size}")

    def plan(context: int) -> MemoryPlan:
        per_cell = 2 * config.num_layers * kv_dtype.size_bytes(config.kv_dim)
        num_cells = max(context, cache_size)
        return MemoryPlan(
            context,
            num_cells,
            weights_bytes,
            num_cells * per_cell,
            compute_bytes(config, batch_size, context),
        )

    wanted = plan(context_size or min(config.context_length, DEFAULT_CONTEXT))
    if available_bytes is None:
        return wanted
    usable = int(available_bytes * USABLE_SHARE)
    if wanted.total_bytes <= usable:
        return wanted
    largest = _largest_fitting(usable, wanted.context_size, plan)
    if largest < MIN_CONTEXT:
        cache = f" with a cache of {cache_size:,} tokens" if cache_size else ""
        raise MemoryLimitError(
            f"the model{cache} needs {_gib(plan(MIN_CONTEXT).total_bytes)} of memory, but only "
            f"{_gib(available_bytes)} are available; choose a smaller "
            f"{'cache, ' if cache else ''}model or quantisation"
        )
    if context_size is not None:
        raise MemoryLimitError(
            f"a context of {context_size:,} tokens needs {_gib(wanted.total_bytes)} of memory with "
            f"the model's weights, but only {_gib(available_bytes)} are available; "
            f"-c {largest} would fit"
        )
    return plan(largest)


def plan_compiled(
    config: ModelConfig, max_cells: int, weights_bytes: int, batch_size: int, context: int | None
) -> MemoryPlan:
    """The plan for a model whose cache was compiled with a fixed size, and is all used.

    Such a model is in memory already, so nothing is refused; a `context` (tokens) that is larger
    than the cache becomes as large as that.
    """
    wanted = config.context_length if context is None else context
    return plan_memory(
        config,
        weights_bytes=weights_bytes,
        kv_dtype=dtypes.F16,
        batch_size=batch_size,
        context_size=min(wanted, max_cells),
        available_bytes=None,
        cache_size=max_cells,
    )


def compute_bytes(config: ModelConfig, batch_size: int, context_size: int) -> int:
    """Scratch memory of a step of `batch_size` tokens: activations that live at once, and masks."""
    heads = config.num_heads * config.head_dim + 2 * config.kv_dim
    per_token = FLOAT_BYTES * (4 * config.embed_dim + 3 * config.ffn_dim + 3 * heads)
    mask = 2 * batch_size * context_size  # float16
    logits = FLOAT_BYTES * config.vocab_size
    return batch_size * per_token + mask + logits


def _largest_fitting(usable: int, upper: int, plan: Callable[[int], MemoryPlan]) -> int:
    """The largest multiple of 256 tokens below `upper` that fits; 0 if none does."""
    low, high = 0, upper // MIN_CONTEXT
    while low < high:
        middle = (low + high + 1) // 2
        if plan(middle * MIN_CONTEXT).total_bytes <= usable:
            low = middle
        else:
            high = middle - 1
    return low * MIN_CONTEXT


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
