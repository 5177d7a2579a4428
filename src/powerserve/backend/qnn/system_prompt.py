"""kv/*.raw: K and V of the system prompt that were computed when the model was converted.

A file per layer, kind and head: float32, little-endian, row-major [tokens, head_dim]. Keys are not
transposed, but rotated and scaled like those in the cache (the original PowerServe's format).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from powerserve.backend.base import ComputedPrefix
from powerserve.backend.qnn.config_file import QnnFolder
from powerserve.backend.qnn.options import SystemPromptUse
from powerserve.core.config import ModelConfig
from powerserve.core.errors import ConfigError

logger = logging.getLogger("powerserve.backend")


@dataclass(frozen=True, slots=True)
class SystemPrompt:
    """K and V of a system prompt, either before every sequence or as a prefix to use again."""

    num_front: int = 0  # tokens before every sequence
    front: bytes = b""  # their cells, as `QnnCache.save` gives them
    prefix: ComputedPrefix | None = None


def read_system_prompt(
    folder: QnnFolder, config: ModelConfig, use: SystemPromptUse
) -> SystemPrompt:
    """What the folder has, put to this use.

    Raises ConfigError if a file is missing or has another size.
    """
    files = folder.files
    if not files.num_system_tokens or use is SystemPromptUse.IGNORE:
        return SystemPrompt()
    if use is SystemPromptUse.USE:
        return SystemPrompt(files.num_system_tokens, _read_cells(folder, config))
    if files.system_prompt_tokens is None:
        logger.warning(
            "%s has the K and V of a system prompt, but not its tokens: they are left out; "
            "`--qnn-system-kv use` puts them before every prompt",
            folder.path,
        )
        return SystemPrompt()
    token_ids = np.array(files.system_prompt_tokens, np.int32)
    return SystemPrompt(prefix=ComputedPrefix(token_ids, _read_cells(folder, config)))


def _read_cells(folder: QnnFolder, config: ModelConfig) -> bytes:
    """All files of the folder as `QnnCache.save` orders cells."""
    files = folder.files
    shape = (files.num_system_tokens, config.head_dim)
    names = [
        _file_name(chunk.kv_path_format, kind, layer, head)
        for kind in ("key", "value")
        for chunk in files.chunks(files.batch_sizes[0])
        for layer in range(chunk.start_layer_id, chunk.end_layer_id)
        for head in range(config.num_kv_heads)
    ]
    return np.stack([_read(folder.path / name, shape) for name in names]).tobytes()


def _file_name(pattern: str, kind: str, layer: int, head: int) -> str:
    try:
        name = pattern.format(layer_id=layer, kv_type=kind, head_id=head)
    except (KeyError, IndexError, ValueError):
        name = ""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"`kv_path_format` {pattern!r} does not name files of the folder")
    return name


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read, but config.json announces the K and V of {shape[0]} tokens: "
            f"{error.strerror}"
        ) from None
    if len(content) != 4 * shape[0] * shape[1]:
        raise ConfigError(
            f"{path} has {len(content)} bytes, but {shape[0]} tokens and heads of {shape[1]} take "
            f"{4 * shape[0] * shape[1]}"
        )
    return np.frombuffer(content, "<f4").reshape(shape).astype(np.float16)
