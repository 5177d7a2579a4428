"""What a model's files say about it, read without loading it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from powerserve.server.reasoning import can_reason
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.quantisation import quantisation_label
from powerserve.storage.resolve import ModelSource

_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class Description:
    """The short form of it."""

    digest: str  # tells one state of the file from another; not of its contents, which are large
    modified: datetime
    size_bytes: int  # of all tensors
    num_parameters: int
    architecture: str
    quantisation: str

    def details(self) -> dict[str, Any]:
        """The `details` object."""
        return {
            "parent_model": "",
            "format": "gguf",
            "family": self.architecture,
            "families": [self.architecture],
            "parameter_size": _short(self.num_parameters),
            "quantization_level": self.quantisation,
        }


class Descriptions:
    """Reads descriptions, each once for as long as its file stays the same."""

    def __init__(self) -> None:
        self._known: dict[Path, Description] = {}

    def of(self, source: ModelSource) -> Description:
        """The description of a model. Reads the disk; raises a PowerServeError or OSError."""
        digest = _digest(source.weights)
        known = self._known.get(source.weights)
        if known is None or known.digest != digest:
            known = self._known[source.weights] = _describe(source.weights, digest)
        return known


def template_of(source: ModelSource) -> str:
    """The chat template in the model's files, "" if there is none."""
    with GGUFFile.open(source.vocab) as file:
        template = file.metadata.get(_TEMPLATE)
        return template if isinstance(template, str) else ""


def capabilities(template: str) -> list[str]:
    """What a model with this template can be used for, in Ollama's words."""
    found = ["completion"]
    if template:
        found.append("tools")  # a template that knows none gets them in words
    if can_reason(template):
        found.append("thinking")
    return found


def model_info(source: ModelSource, num_parameters: int, *, verbose: bool) -> dict[str, Any]:
    """The metadata of the model's file; arrays, which are long, only if asked for."""
    with GGUFFile.open(source.weights) as file:
        info = {
            key: _plain(value) if verbose or not _is_array(value) else None
            for key, value in file.metadata.items()
            if key != _TEMPLATE
        }
    return info | {"general.parameter_count": num_parameters}


def _describe(weights: Path, digest: str) -> Description:
    with GGUFFile.open(weights) as file:
        tensors = list(file.tensors.values())
        sizes: Counter[str] = Counter()
        for tensor in tensors:
            sizes[str(tensor.dtype)] += tensor.size_bytes
        most = sizes.most_common(1)[0][0] if sizes else "unknown"
        return Description(
            digest=digest,
            modified=datetime.fromtimestamp(weights.stat().st_mtime, UTC),
            size_bytes=sizes.total(),
            num_parameters=sum(math.prod(tensor.shape) for tensor in tensors),
            architecture=str(file.metadata.get("general.architecture", "unknown")),
            quantisation=quantisation_label(weights.name) or most,
        )


def _digest(file: Path) -> str:
    status = file.stat()
    return hashlib.sha256(f"{file}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


def _is_array(value: Any) -> bool:
    return isinstance(value, Sized) and not isinstance(value, str | Mapping)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if _is_array(value) else value
