"""Make a workspace folder: models, settings, launchers and, for phones, Qualcomm's NPU libraries.

A model is a model folder (with model.json), a GGUF file or the name of a model in the store. An
existing workspace is updated: the models given here are replaced, its other models stay.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from powerserve.convert.model_description import describe_model
from powerserve.core.errors import UsageError
from powerserve.storage.copying import FileCopy, files_below
from powerserve.storage.create import WorkspacePlan, create_workspace
from powerserve.storage.launchers import launcher
from powerserve.storage.model_contents import (
    ModelContents,
    contents_of_folder,
    contents_of_gguf,
)
from powerserve.storage.progress import Progress, console_progress
from powerserve.storage.qnn_libs import copy_qnn_libs
from powerserve.storage.resolve import ModelSource, resolve_model
from powerserve.storage.store import ModelStore
from powerserve.storage.workspace import QNN_LIBS_FOLDER

# The original's executables, and the functions of `powerserve.cli.main` that stand for them.
PROGRAMS = {
    "powerserve-run": "run_main",
    "powerserve-server": "server_main",
    "powerserve-perplexity-test": "perplexity_main",
    "powerserve-config-generator": "config_generator_main",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the original's `powerserve create`."""
    parser.add_argument("-m", "--main-model", metavar="MODEL", help="the model that answers")
    parser.add_argument("-d", "--draft-model", metavar="MODEL", help="a small one that guesses")
    parser.add_argument("--other-models", nargs="+", default=[], metavar="MODEL")
    parser.add_argument(
        "-o", "--out-path", type=Path, default=Path("proj"), help="default: ./proj/"
    )
    parser.add_argument("--exe-path", type=Path, help="a folder whose files are copied to bin/")
    qnn = parser.add_mutually_exclusive_group()
    qnn.add_argument("--only-extract-qnn", action="store_true", help="only fill qnn_libs/")
    qnn.add_argument("--no-extract-qnn", action="store_true", help="do not fill qnn_libs/")


def execute(arguments: argparse.Namespace) -> int:
    """Make the workspace and say how to use it."""
    progress = console_progress()
    if not arguments.only_extract_qnn:
        _create(arguments, progress)
    if not arguments.no_extract_qnn:
        _extract_qnn(arguments.out_path, os.environ.get("QNN_SDK_ROOT"), progress)
    return 0


def _create(arguments: argparse.Namespace, progress: Progress) -> None:
    if not arguments.main_model:
        raise UsageError("name the main model with -m: a model folder, a GGUF file or a store name")
    main = _find(arguments.main_model)
    draft = _find(arguments.draft_model) if arguments.draft_model else main.draft
    plan = WorkspacePlan(
        main=_contents(main),
        draft=_contents(draft) if draft else None,
        others=tuple(_contents(_find(each)) for each in arguments.other_models),
        launchers=launchers(sys.executable),
        executables=_executables(arguments.exe_path),
    )
    workspace = create_workspace(arguments.out_path, plan, progress)
    names = ", ".join(model.name for model in plan.models)
    print(f"{workspace.folder}: a workspace with {names}")


def launchers(python: str) -> dict[str, str]:
    """The scripts for `bin/`, by name: one for each program that this PowerServe has."""
    from powerserve.cli import main

    return {
        program: launcher(program, f"powerserve.cli.main:{function}", python)
        for program, function in PROGRAMS.items()
        if hasattr(main, function)
    }


def _find(reference: str) -> ModelSource:
    return resolve_model(reference, store=ModelStore())


def _contents(source: ModelSource) -> ModelContents:
    if source.folder is not None:
        return contents_of_folder(source.folder)
    return contents_of_gguf(source.weights, describe_model)


def _executables(folder: Path | None) -> list[FileCopy]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UsageError(f"--exe-path: there is no folder {folder}")
    return files_below(folder)


def _extract_qnn(workspace: Path, sdk: str | None, progress: Progress) -> None:
    if not sdk:
        progress.note("QNN_SDK_ROOT is not set: no NPU libraries are copied (the CPU needs none)")
        return
    missing = copy_qnn_libs(Path(sdk), workspace / QNN_LIBS_FOLDER, progress)
    for pattern in missing:
        progress.note(f"the QNN SDK has no {Path(sdk) / pattern}: continuing without")
