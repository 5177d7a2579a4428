"""A checkpoint as a model folder: what `powerserve create` and the original PowerServe take.

<out>/model.json  vocab.gguf  ggml/weights.gguf  and, for the NPU, qnn/…
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from powerserve.convert.checkpoint import Checkpoint
from powerserve.convert.gguf_plan import GGUFPlan, check_free_space, write_plan
from powerserve.convert.hf_to_gguf import Content, ConversionOptions, plan_conversion
from powerserve.convert.model_description import describe_model
from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.copying import FileCopy, copy_files, file_errors, files_below
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.json_file import write_json
from powerserve.storage.model_contents import content_id
from powerserve.storage.model_folder import (
    QNN_FOLDER,
    VOCAB_FILE,
    ModelFolder,
    is_model_folder,
)
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.vocab_file import without_tensors


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the model folder shall hold."""

    out_type: str = "q8_0"
    model_id: str = ""  # "": made from the weights, so that equal models share it and no others
    qnn_folder: Path | None = None  # the NPU converter's output
    only_embedding: bool = False  # the NPU has the rest of the weights


def export(
    checkpoint_folder: Path, out: Path, options: ExportOptions, progress: Progress = SILENT
) -> ModelFolder:
    """Make the model folder `out`, which appears when it is whole; an earlier one is replaced.

    Raises UsageError for a place that cannot be written or must not be overwritten, and what
    `plan_conversion` raises.
    """
    checkpoint = Checkpoint(checkpoint_folder)
    npu_files = _npu_files(options.qnn_folder)
    _check_out(checkpoint_folder, out, has_npu_files=bool(npu_files))
    plan = plan_conversion(checkpoint, _conversion(options), progress)
    with file_errors(f"{out} cannot be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        check_free_space(out.parent, plan.size_bytes + sum(file.size_bytes for file in npu_files))
        with atomic.new_folder(out) as staged:
            _fill(ModelFolder(staged), plan, options.model_id, progress)
            _copy_npu_files(npu_files, staged, progress)
    return ModelFolder(out)


def _check_out(checkpoint_folder: Path, out: Path, *, has_npu_files: bool) -> None:
    """Refuse to replace what is no model folder, or one whose NPU files would be lost.

    Raises UsageError.
    """
    if checkpoint_folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out} holds the checkpoint itself: choose another folder with -o")
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise UsageError(f"{out} is a file: name a folder with -o")
    if not is_model_folder(out) and any(out.iterdir()):
        raise UsageError(f"{out} is not empty and no model folder: choose another one with -o")
    if ModelFolder(out).has_npu_files and not has_npu_files:
        raise UsageError(
            f"{out} has NPU files, which would be lost: keep them with "
            f"`--qnn-path {out / QNN_FOLDER}`, or choose another folder with -o"
        )


def _conversion(options: ExportOptions) -> ConversionOptions:
    content = Content.EMBEDDING if options.only_embedding else Content.ALL
    return ConversionOptions(options.out_type, content)


def _fill(folder: ModelFolder, plan: GGUFPlan, model_id: str, progress: Progress) -> None:
    weights = folder.weights
    weights.parent.mkdir()
    write_plan(plan, weights, progress)
    atomic.write_bytes(folder.path / VOCAB_FILE, without_tensors(weights))
    with GGUFFile.open(weights) as file:
        write_json(folder.model_json, describe_model(file, model_id or content_id(weights)))


def _npu_files(folder: Path | None) -> list[FileCopy]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UsageError(f"--qnn-path: there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise UsageError(f"--qnn-path: {folder} has no config.json: the NPU converter writes one")
    return files_below(folder, PurePath(QNN_FOLDER))


def _copy_npu_files(files: list[FileCopy], target: Path, progress: Progress) -> None:
    if files:
        size_bytes = sum(file.size_bytes for file in files)
        with progress.transfer("copying the NPU files", size_bytes, 0) as advance:
            copy_files(files, target, advance)
