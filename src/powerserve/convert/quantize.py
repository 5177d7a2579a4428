"""Rewrites a GGUF model with its matrices in smaller types."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.ggml.library import MAX_THREADS, GgmlLibrary
from powerserve.backend.ggml.locate import library_folder
from powerserve.backend.ggml.quantisers import Quantisers
from powerserve.convert.imatrix import ImportanceMatrix
from powerserve.convert.quantize_rows import TensorConverter
from powerserve.convert.quantize_types import TensorPlan, TypeChoices, is_matrix, plan_types
from powerserve.convert.recipes import Recipe
from powerserve.core.errors import UsageError
from powerserve.core.machine import default_threads
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.gguf_split import num_shards, shard_paths
from powerserve.storage.gguf_writer import (
    RawMetadata,
    file_size,
    raw_metadata,
    string_value,
    uint32_value,
    write_gguf,
)
from powerserve.storage.progress import SILENT, Progress, format_bytes

NO_CHOICES = TypeChoices()
QUANTISATION_VERSION = 2  # GGML_QNT_VERSION: how blocks are laid out


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """A model, and the file that is to be made of it."""

    model: GGUFFile
    metadata: RawMetadata  # of the new file
    tensors: list[TensorPlan]
    importance: ImportanceMatrix | None

    @property
    def file_bytes(self) -> int:
        """Size of the new file."""
        return file_size(self.metadata, [tensor.header for tensor in self.tensors])

    def without_importance(self) -> list[str]:
        """Matrices of layers for which the importance matrix, if there is one, has no data."""
        if self.importance is None:
            return []
        names = [t.source.name for t in self.tensors if t.changes]
        return self.importance.missing([name for name in names if name.startswith("blk.")])


def plan_quantisation(
    model: GGUFFile,
    recipe: Recipe,
    choices: TypeChoices = NO_CHOICES,
    importance: ImportanceMatrix | None = None,
    *,
    allow_requantize: bool = False,
) -> QuantizePlan:
    """Decide everything about the new file.

    Raises:
        UsageError: the model is quantised already and that was not allowed, or a chosen type does
            not fit.
        ModelFileError: the importance matrix belongs to another model.
    """
    tensors = plan_types(model, recipe, choices, has_importance=importance is not None)
    if not allow_requantize:
        _check_unquantised(model, tensors)
    if importance is not None:
        importance.check_fits({t.name: t.shape for t in model.tensors.values() if is_matrix(t)})
    return QuantizePlan(model, _metadata(model, recipe, importance), tensors, importance)


def write_quantised(
    plan: QuantizePlan, target: Path, *, num_threads: int = 0, progress: Progress = SILENT
) -> None:
    """Write the new file, which appears under its name when it is whole.

    `num_threads` 0 means as many as this process may use.

    Raises:
        UsageError: `target` is the model itself or cannot be written; there are too many threads.
        ModelFileError: a tensor holds numbers that are not finite or too large for its new type.
        BackendError: ggml is missing.
    """
    _check_target(plan, target)
    if num_threads > MAX_THREADS:
        raise UsageError(f"the number of threads must be 1 to {MAX_THREADS}, not {num_threads}")
    quantisers = Quantisers(GgmlLibrary(library_folder()))
    num_threads = num_threads or default_threads()
    with (
        file_errors(f"{target} cannot be written"),
        ThreadPoolExecutor(num_threads) as pool,
        atomic.new_file(target) as file,
        progress.transfer(f"writing {target.name}", plan.file_bytes, 0) as advance,
    ):
        converter = TensorConverter(quantisers, pool, num_threads, plan.importance)
        tensors = [
            (each.header, _counted(converter.pieces(each), advance)) for each in plan.tensors
        ]
        write_gguf(file, plan.metadata, tensors)


def _counted(pieces: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        advance(len(piece))


def _metadata(
    model: GGUFFile, recipe: Recipe, importance: ImportanceMatrix | None
) -> dict[str, bytes]:
    """That of the model, with what has changed."""
    metadata = raw_metadata(_files(model)[0])
    kept = {key: value for key, value in metadata.items() if not key.startswith("split.")}
    kept["general.quantization_version"] = uint32_value(QUANTISATION_VERSION)
    kept["general.file_type"] = uint32_value(recipe.file_type)
    if importance is not None:
        kept["quantize.imatrix.file"] = string_value(importance.path.name)
        kept["quantize.imatrix.dataset"] = string_value(", ".join(importance.datasets))
        kept["quantize.imatrix.entries_count"] = uint32_value(len(importance.means))
        kept["quantize.imatrix.chunks_count"] = uint32_value(importance.num_chunks)
    return kept


def _check_unquantised(model: GGUFFile, tensors: list[TensorPlan]) -> None:
    again = (t for t in tensors if t.changes and t.source.dtype.is_quantised)
    first = next((t for t in again if t.dtype.is_quantised), None)
    if first is not None:
        raise UsageError(
            f"{model.path} is quantised already ({first.source.name} is {first.source.dtype}), "
            "and quantising again loses quality; start from F16, BF16 or F32, or insist with "
            "--allow-requantize"
        )


def _check_target(plan: QuantizePlan, target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    with file_errors(f"{target} cannot be written"):
        if target.exists() and any(os.path.samefile(target, path) for path in _files(plan.model)):
            raise UsageError(f"{target} is the model itself; name another file for the result")
        free = shutil.disk_usage(target.resolve().parent).free
    if plan.file_bytes > free:
        raise UsageError(
            f"{target} would take {format_bytes(plan.file_bytes)}, but only {format_bytes(free)} "
            "are free on its disk"
        )


def _files(model: GGUFFile) -> list[Path]:
    """The file or files that the model is read from; the first has the metadata."""
    count = num_shards(model.metadata)
    return shard_paths(model.path, count) if count > 1 else [model.path]
