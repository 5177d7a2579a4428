"""A GGUF file that is planned to the last byte, and then written in one go.

Tensors are streamed, so that memory holds a few rows at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from powerserve.convert.element_types import ElementConverter, type_of
from powerserve.convert.tensor_plan import PlannedTensor
from powerserve.core.dtypes import DType
from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors
from powerserve.storage.gguf_header import MAGIC
from powerserve.storage.gguf_writer import RawMetadata, TensorHeader, file_size, write_gguf
from powerserve.storage.progress import SILENT, Advance, Progress, format_bytes

QUANTISATION_VERSION = 2  # GGML_QNT_VERSION: how blocks are laid out


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """A tensor of the new file: where it comes from, and its header."""

    planned: PlannedTensor
    header: TensorHeader


@dataclass(frozen=True, slots=True)
class GGUFPlan:
    """A whole GGUF file to be."""

    metadata: RawMetadata
    tensors: list[OutputTensor]

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return file_size(self.metadata, [tensor.header for tensor in self.tensors])


def output_tensors(planned: list[PlannedTensor], dtype: DType) -> list[OutputTensor]:
    """The tensors with their types in a file of mostly `dtype`."""
    return [
        OutputTensor(each, TensorHeader(each.name, each.shape, type_of(each, dtype)))
        for each in planned
    ]


def write_file(plan: GGUFPlan, target: Path, progress: Progress = SILENT) -> None:
    """Write the plan as `target`, which may replace a GGUF file but nothing else.

    Raises UsageError if the file cannot be written, ModelFileError for numbers that are not finite
    or too large for their type.
    """
    with file_errors(f"{target} cannot be written"):
        _check_target(target)
        check_free_space(target.parent, plan.size_bytes)
        write_plan(plan, target, progress)


def write_plan(plan: GGUFPlan, target: Path, progress: Progress = SILENT) -> None:
    """Write the file, which appears under its name when it is whole.

    Raises ModelFileError as `write_file` does; OSError.
    """
    converter = ElementConverter()
    num_bytes = sum(tensor.header.size_bytes for tensor in plan.tensors)
    with (
        atomic.new_file(target) as file,
        progress.transfer(f"writing {target.name}", num_bytes, 0) as advance,
    ):
        tensors = [(each.header, _pieces(converter, each, advance)) for each in plan.tensors]
        write_gguf(file, plan.metadata, tensors)


def check_free_space(folder: Path, size_bytes: int) -> None:
    """Raises UsageError if `size_bytes` do not fit onto the disk that holds `folder`; OSError."""
    free_bytes = shutil.disk_usage(folder).free
    if size_bytes > free_bytes:
        raise UsageError(
            f"{format_bytes(size_bytes)} would be written, but only {format_bytes(free_bytes)} "
            f"are free on the disk of {folder}"
        )


def _check_target(target: Path) -> None:
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name a file in it")
    if not target.exists():
        return
    with target.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:  # a file of the checkpoint, for instance
            raise UsageError(f"{target} exists and is not a GGUF file: name another one")


def _pieces(converter: ElementConverter, tensor: OutputTensor, advance: Advance) -> Iterator[bytes]:
    for piece in converter.pieces(tensor.planned, tensor.header.dtype):
        yield piece
        advance(len(piece))
