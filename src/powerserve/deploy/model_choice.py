"""From what the user calls a model to the folders that a device gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from powerserve.convert.model_description import describe_model
from powerserve.core.errors import UsageError
from powerserve.deploy.model_table import ModelTable, TableModel, load_model_table
from powerserve.llm import locate_model
from powerserve.storage.model_contents import (
    ModelContents,
    contents_of_folder,
    contents_of_gguf,
)
from powerserve.storage.model_folder import QNN_FOLDER, ModelFolder
from powerserve.storage.progress import Progress
from powerserve.storage.resolve import ModelSource


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for. `soc` is that of the NPU to use, None for the CPU."""

    model: str
    draft_model: str = ""
    speculate: bool = False
    soc: str | None = None


@dataclass(frozen=True, slots=True)
class ChosenModels:
    """Model folders to be, and the prompt format where the table has one."""

    main: ModelContents
    draft: ModelContents | None = None
    template: str | None = None
    is_for_npu: bool = False  # it has been compiled for one, whether or not that is used here


def choose_models(wish: Wish, progress: Progress) -> ChosenModels:
    """Find the models on this machine, or fetch them. Raises a PowerServeError."""
    table = load_model_table()
    known = table.models.get(wish.model)
    if known is not None:
        return _from_table(wish, table, known, progress)
    source = locate_model(wish.model, progress=progress)
    draft = locate_model(wish.draft_model, progress=progress) if wish.draft_model else source.draft
    if wish.speculate and draft is None:
        raise UsageError(f"{wish.model} comes without a draft model: name one with --draft-model")
    return ChosenModels(
        _for_device(_contents(source), wish.soc),
        _for_device(_contents(draft), wish.soc) if draft and wish.speculate else None,
        is_for_npu=source.folder is not None and ModelFolder(source.folder).has_npu_files,
    )


def table_names() -> list[str]:
    """The names that the table knows."""
    return sorted(load_model_table().models)


def _from_table(
    wish: Wish, table: ModelTable, known: TableModel, progress: Progress
) -> ChosenModels:
    if wish.speculate and known.draft is None:
        capable = ", ".join(name for name, each in sorted(table.models.items()) if each.draft)
        raise UsageError(f"{wish.model} has no draft model; these have one: {capable}")
    soc = wish.soc or table.cpu
    repo = (known.speculate or known.repo) if wish.speculate and wish.soc else known.repo
    main = _fetch(repo.format(soc=soc), wish, progress)
    draft = None
    if wish.speculate and known.draft is not None:
        draft = _fetch(known.draft.format(soc=soc), wish, progress)
    return ChosenModels(main, draft, known.template, is_for_npu=True)


def _fetch(repo: str, wish: Wish, progress: Progress) -> ModelContents:
    from powerserve.storage.hub import pull_folder  # huggingface_hub takes its time

    skipped = () if wish.soc else (f"{QNN_FOLDER}/",)
    folder = pull_folder(repo, progress=progress, skipped=skipped)
    contents = replace(contents_of_folder(folder), name=repo.partition("/")[2])
    return _for_device(contents, wish.soc)


def _contents(source: ModelSource) -> ModelContents:
    if source.folder is not None:
        return contents_of_folder(source.folder)
    return replace(contents_of_gguf(source.weights, describe_model), name=source.name)


def _for_device(contents: ModelContents, soc: str | None) -> ModelContents:
    """Without the NPU's files where the CPU is used: they are as large as the weights."""
    if soc is not None:
        return contents
    kept = [copy for copy in contents.copies if copy.place.parts[0] != QNN_FOLDER]
    return replace(contents, copies=kept)
