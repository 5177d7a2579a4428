"""Building a workspace: what `powerserve create` does.

Models are copied beside their final names first, all of them, and then renamed into place, so that
a workspace never holds half a model or a new main model with an old draft. workspace.json, which
makes the folder a workspace, is written last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.copying import FileCopy, copy_files, file_errors
from powerserve.storage.hparams import GREEDY, write_hparams
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.model_contents import ModelContents
from powerserve.storage.progress import SILENT, Advance, Progress, format_bytes
from powerserve.storage.workspace import (
    EXECUTABLES_FOLDER,
    HPARAMS_FILE,
    RESERVED_NAMES,
    Workspace,
    write_workspace,
)

LOCK_FILE = ".create.lock"
SHOWN_FROM_BYTES = 50_000_000  # a smaller copy is over before a bar is read


@dataclass(frozen=True, slots=True)
class WorkspacePlan:
    """What a workspace shall hold."""

    main: ModelContents
    draft: ModelContents | None = None
    others: tuple[ModelContents, ...] = ()
    launchers: Mapping[str, str] = field(default_factory=dict)  # script text by program name
    executables: list[FileCopy] = field(default_factory=list)  # to `bin`, over the launchers

    @property
    def models(self) -> tuple[ModelContents, ...]:
        """Main, draft if any, others."""
        return (self.main, *((self.draft,) if self.draft else ()), *self.others)


def create_workspace(folder: Path, plan: WorkspacePlan, progress: Progress = SILENT) -> Workspace:
    """Make or update the workspace `folder`; models that it holds already and others stay.

    hparams.json is always reset to greedy sampling. Raises UsageError for models that cannot stand
    side by side, for a full disk and for a folder that cannot be written.
    """
    _check_ids(plan)
    _check_names(folder, plan)
    waiting = f"waiting for another `powerserve create` that is working on {folder}"
    with (
        file_errors(f"cannot make the workspace {folder}"),
        exclusive_lock(folder / LOCK_FILE, waiting=lambda: progress.note(waiting)),
    ):
        _remove_leftovers(folder)
        models = [model for model in plan.models if not _is_in_place(model, folder)]
        _check_disk_space(folder, sum(model.size_bytes for model in models))
        _fill_bin(folder / EXECUTABLES_FOLDER, plan)
        _put_models(folder, models, progress)
        write_hparams(folder / HPARAMS_FILE, GREEDY)
        write_workspace(folder, plan.main.name, plan.draft.name if plan.draft else "")
    return Workspace.open(folder)


def _check_names(folder: Path, plan: WorkspacePlan) -> None:
    origins: dict[str, Path] = {}
    for model in plan.models:
        if model.name in RESERVED_NAMES or model.name.startswith(".") or not model.name:
            raise UsageError(f"a model folder in a workspace cannot be called `{model.name}`")
        if model.name in origins:
            raise UsageError(
                f"{origins[model.name]} and {model.origin} would both become the folder "
                f"`{model.name}` of the workspace: rename one of them"
            )
        origins[model.name] = model.origin
        if folder.resolve().is_relative_to(model.origin.resolve()):
            raise UsageError(
                f"the workspace {folder} would lie inside the model {model.origin}: "
                "choose another place with -o"
            )


def _check_ids(plan: WorkspacePlan) -> None:
    if plan.draft is not None and plan.draft.model_id == plan.main.model_id:
        raise UsageError(
            f"the main model {plan.main.origin} and the draft model {plan.draft.origin} have the "
            f"same `model_id` ({plan.main.model_id}): if they really are two models, change the "
            "key in one model.json"
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a killed `create` left; the lock says that no other one is at work."""
    for path in folder.iterdir():
        if atomic.is_partial(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _is_in_place(model: ModelContents, folder: Path) -> bool:
    target = folder / model.name
    return target.exists() and os.path.samefile(model.origin, target)


def _check_disk_space(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise UsageError(
            f"the workspace {folder} needs {format_bytes(needed_bytes)}, "
            f"but only {format_bytes(free_bytes)} are free there"
        )


def _put_models(folder: Path, models: list[ModelContents], progress: Progress) -> None:
    size_bytes = sum(model.size_bytes for model in models)
    shown = progress if size_bytes >= SHOWN_FROM_BYTES else SILENT
    with ExitStack() as stack:  # closing it renames every model into place, or removes every copy
        staged = [stack.enter_context(atomic.new_folder(folder / each.name)) for each in models]
        with shown.transfer(f"copying to {folder}", size_bytes, 0) as advance:
            for model, target in zip(models, staged, strict=True):
                _write_model(model, target, advance)


def _write_model(model: ModelContents, target: Path, advance: Advance) -> None:
    copy_files(model.copies, target, advance)
    for place, content in model.written.items():
        atomic.write_bytes(target / place, content)
        advance(len(content))


def _fill_bin(folder: Path, plan: WorkspacePlan) -> None:
    folder.mkdir(exist_ok=True)
    for program, script in plan.launchers.items():
        atomic.write_bytes(folder / program, script.encode(), mode=atomic.EXECUTABLE_MODE)
    copy_files(plan.executables, folder, lambda num_bytes: None)
