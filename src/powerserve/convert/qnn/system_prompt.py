"""K and V of a system prompt, computed once and kept beside the compiled graphs.

One file for each layer, head and kind: float32, [tokens, head_dim]. Keys are as they lie in the
cache, after RoPE and scaled, but not transposed: the original's format.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from powerserve.backend.qnn.config_file import KV_PATH_FORMAT
from powerserve.convert.qnn.float_layers import float_layers
from powerserve.convert.qnn.source import NpuModel
from powerserve.storage import atomic


def write_system_prompt(model: NpuModel, token_ids: Sequence[int], folder: Path) -> None:
    """Compute `token_ids` from position 0 and write K and V below `folder` (qnn/ of a model).

    They are those of the model in float32: no token after them loses by the NPU's 4-bit weights.
    Raises OSError.
    """
    (folder / KV_PATH_FORMAT).parent.mkdir(parents=True, exist_ok=True)
    hidden = model.embed(token_ids)
    for layer, chunk in enumerate(float_layers(model, len(token_ids))):
        hidden = chunk.run(hidden)
        for head in range(model.config.num_kv_heads):
            _write(folder, layer, "key", head, chunk.keys(layer, head, len(token_ids)))
            _write(folder, layer, "value", head, chunk.values(layer, head, len(token_ids)))


def _write(folder: Path, layer: int, kind: str, head: int, rows: npt.NDArray[np.generic]) -> None:
    path = folder / KV_PATH_FORMAT.format(layer_id=layer, kv_type=kind, head_id=head)
    atomic.write_bytes(path, rows.astype("<f4").tobytes())
