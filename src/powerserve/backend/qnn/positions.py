"""Rotary positions as the compiled graphs want them: tables of cosines and sines."""

from __future__ import annotations

import numpy as np

from powerserve.backend.base import FloatArray, Int32Array
from powerserve.backend.qnn.runtime.base import Array
from powerserve.backend.reference.rope import rope_tables
from powerserve.core.config import ModelConfig
from powerserve.core.errors import UnsupportedModelError


class PositionTables:
    """Cosine and sine of every position below `num_positions`, all scalings included."""

    def __init__(self, config: ModelConfig, factors: FloatArray | None, num_positions: int) -> None:
        """`factors` divide the frequencies, as Llama 3.1 needs.

        Raises UnsupportedModelError for a model that rotates only a part of each head.
        """
        if config.rope.dim != config.head_dim:
            raise UnsupportedModelError(
                f"the NPU rotates whole heads, but this model rotates {config.rope.dim} of "
                f"{config.head_dim} dimensions; use --no-qnn"
            )
        positions = np.arange(num_positions, dtype=np.int32)
        self._cos, self._sin = rope_tables(positions, config.rope, factors)

    def write(self, positions: Int32Array, cos: Array, sin: Array) -> None:
        """Fill cos, sin [B, head_dim / 2]; rows that no position is for stay as they are."""
        length = len(positions)
        np.take(self._cos, positions, axis=0, out=cos[:length])
        np.take(self._sin, positions, axis=0, out=sin[:length])
