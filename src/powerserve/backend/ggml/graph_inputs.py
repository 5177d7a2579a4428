"""The tensors of a ggml graph that every step writes."""

from __future__ import annotations

from dataclasses import dataclass

from powerserve.backend.base import StepShape
from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.core import dtypes

CACHE_LINE_BYTES = 64


@dataclass(frozen=True, slots=True)
class GraphInputs:
    """Their addresses."""

    token_ids: int  # I32 [tokens]
    positions: int  # I32 [tokens]
    cells: int  # I64 [tokens]
    masks: int  # F16, one slice after the other, [cells, tokens]: 0 what a token sees, else -inf
    output_rows: int  # I32 [outputs]

    @classmethod
    def of(cls, library: GgmlLibrary, context: int, shape: StepShape) -> GraphInputs:
        """New tensors in `context` for steps of `shape`."""

        def vector(name: str, dtype: dtypes.DType, length: int) -> int:
            return _padded_vector(library, context, name, dtype, length)

        masks = sum(piece.num_cells * piece.num_tokens for piece in shape.slices)
        return cls(
            vector("token_ids", dtypes.I32, shape.num_tokens),
            vector("positions", dtypes.I32, shape.num_tokens),
            vector("cells", dtypes.I64, shape.num_tokens),
            vector("masks", dtypes.F16, masks),
            vector("output_rows", dtypes.I32, shape.num_outputs),
        )


def _padded_vector(
    library: GgmlLibrary, context: int, name: str, dtype: dtypes.DType, length: int
) -> int:
    """A view of a vector padded to a cache line.

    ggml aligns to 32 bytes only, and what lies behind a 4-byte input would have every 64-byte store
    of AVX-512 and AMX cut in two.
    """
    line = CACHE_LINE_BYTES // dtype.block_bytes
    padded = library.new_tensor_1d(context, dtype.ggml_id, -(-length // line) * line)
    library.set_input(padded)
    tensor: int = library.view_1d(context, padded, length, 0)
    library.set_name(tensor, name.encode())
    return tensor
