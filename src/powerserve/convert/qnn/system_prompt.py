"""K and V of a system prompt, computed once and kept beside the compiled graphs.

One file for each layer, head and kind: float32, [tokens, head_dim]. Keys are as they lie in the
cache, after RoPE and scaled, but not transposed: the original's format.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.config_file import KV_PATH_FORMAT
from powerserve.convert.qnn.cpu_execution import CpuChunk
from powerserve.convert.qnn.source import NpuModel
from powerserve.storage import atomic


def write_system_prompt(
    model: NpuModel, chunks: Iterable[CpuChunk], token_ids: Sequence[int], folder: Path
) -> None:
    """Compute `token_ids` from position 0 and write K and V below `folder` (qnn/ of a model).

    Raises ContextLengthError if they do not fit into the cache; OSError.
    """
    (folder / KV_PATH_FORMAT).parent.mkdir(parents=True, exist_ok=True)
    hidden = model.embed(token_ids)
    for chunk in chunks:
        hidden = chunk.run(hidden)
        for layer in range(chunk.shape.start_layer, chunk.shape.end_layer):
            for head in range(model.config.num_kv_heads):
                keys = chunk.keys(layer, head, len(token_ids))
                values = chunk.values(layer, head, len(token_ids))
                _write(folder, layer, "key", head, keys)
                _write(folder, layer, "value", head, values)


def _write(folder: Path, layer: int, kind: str, head: int, rows: npt.NDArray[np.generic]) -> None:
    path = folder / KV_PATH_FORMAT.format(layer_id=layer, kv_type=kind, head_id=head)
    atomic.write_bytes(path, rows.astype("<f4").tobytes())
