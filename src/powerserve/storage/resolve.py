"""From what a user calls a model to the files it consists of.

A reference is looked for as `<work folder>/<reference>`, then as a path, then in the model store;
what is found may be a GGUF file, a model folder or a workspace. `main+draft` names two models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from os.path import isdir, isfile  # False, unlike Path's, for names the system cannot even look up
from pathlib import Path
from typing import Protocol

from powerserve.core.errors import ConfigError, ModelFileError, ModelNotFoundError
from powerserve.storage.gguf_header import MAGIC
from powerserve.storage.hparams import Hparams
from powerserve.storage.model_folder import MODEL_FILE, WEIGHTS_FILE, ModelFolder, is_model_folder
from powerserve.storage.workspace import WORKSPACE_FILE, Workspace, escapes_folder, is_workspace


class StoreLookup(Protocol):
    """The part of the model store that resolving needs."""

    def find(self, name: str) -> Path | None:
        """The GGUF file of the model called `name`, if the store has it."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSource:
    """The files of one model, and what its workspace wants of it."""

    name: str
    weights: Path  # GGUF with tensors
    vocab: Path  # GGUF with the tokenizer; may equal `weights`
    model_json: Path | None = None
    hparams: Hparams | None = None  # None: no workspace is involved
    draft: ModelSource | None = None
    draft_is_optional: bool = False  # it is there for those who ask for it, as in a workspace
    folder: Path | None = None  # the model folder, where `qnn/` may lie


def resolve_model(
    reference: str | Path,
    *,
    work_folder: Path | None = None,
    store: StoreLookup | None = None,
    allow_paths: bool = True,
) -> ModelSource:
    """Find the model that `reference` names; "" is the main model of `work_folder`.

    If the work folder is a workspace, its hparams apply whatever the model. A server that must not
    open arbitrary files for its clients sets `allow_paths` to False: then only names below the work
    folder and in the store count. Raises ModelNotFoundError where nothing or only part of a model
    is found, ModelFileError for an unreadable file, ConfigError for a bad workspace.
    """
    search = _Search(work_folder, store, allow_paths)
    source = search.find(str(reference)) or search.find_pair(str(reference))
    if source is None:
        if work_folder is not None and not str(reference):
            Workspace.open(work_folder)  # raises, saying what the work folder lacks
        raise search.nothing_found(str(reference))
    if work_folder is None or source.hparams or not is_workspace(work_folder):
        return source
    return replace(source, hparams=Workspace.open(work_folder).hparams)


def resolve_workspace(workspace: Workspace) -> ModelSource:
    """The main model of a workspace with its hparams and draft model. Raises ConfigError."""
    main = _named_in(workspace, "model_main", workspace.main_model)
    draft = workspace.draft_model
    return replace(
        main,
        hparams=workspace.hparams,
        draft=None if draft is None else _named_in(workspace, "model_draft", draft),
        draft_is_optional=draft is not None,
    )


@dataclass
class _Search:
    work_folder: Path | None
    store: StoreLookup | None
    allow_paths: bool
    tried: list[str] = field(default_factory=list)

    def find(self, name: str) -> ModelSource | None:
        """The single model called `name`."""
        for path in self._paths(name):
            if source := _source_at(path):
                return source
            self._note(_why_not(path))
        if self.store is None or not name:
            return None
        self._note("the model store")
        weights = self.store.find(name)
        return None if weights is None else ModelSource(name, weights, weights)

    def find_pair(self, names: str) -> ModelSource | None:
        """Main and draft model, split at the first `+` with an existing model on both sides.

        Raises ModelNotFoundError where only a main model exists.
        """
        missing = None
        for index in (index for index, letter in enumerate(names) if letter == "+"):
            main_name, draft_name = names[:index], names[index + 1 :]
            main = self.find(main_name) if main_name and draft_name else None
            if main is None:
                continue
            if draft := self.find(draft_name):
                return replace(main, draft=draft, draft_is_optional=False)
            missing = missing or draft_name
        if missing:
            raise self.nothing_found(missing)
        return None

    def nothing_found(self, name: str) -> ModelNotFoundError:
        """The error that says where `name` was looked for and how to get a model."""
        tried = ", ".join(self.tried) or "nothing"
        return ModelNotFoundError(
            f"no model answers to `{name}`; looked at {tried}. `powerserve list` shows the models "
            f"that are here, `powerserve pull {name or 'NAME'}` fetches one"
        )

    def _paths(self, name: str) -> Iterator[Path]:
        below = self.allow_paths or not name or not escapes_folder(name)
        if self.work_folder is not None and below:
            yield self.work_folder / name
        if self.allow_paths and name:
            yield Path(name)

    def _note(self, attempt: str) -> None:
        if attempt not in self.tried:
            self.tried.append(attempt)


def _source_at(path: Path) -> ModelSource | None:
    """The model at a path, or None. Raises where the model or workspace there is incomplete."""
    if isfile(path):
        name = path.stem if path.suffix == ".gguf" else path.name
        return ModelSource(name, path, path) if _is_gguf(path) else None
    if not isdir(path):
        return None
    if is_workspace(path):
        return resolve_workspace(Workspace.open(path))
    if is_model_folder(path):
        return _source_in(ModelFolder(path))
    return None


def _source_in(folder: ModelFolder) -> ModelSource:
    folder.require_weights()
    return ModelSource(
        folder.name,
        folder.weights,
        folder.vocab,
        folder.model_json if folder.model_json.is_file() else None,
        folder=folder.path,
    )


def _named_in(workspace: Workspace, key: str, path: Path) -> ModelSource:
    # Not _source_at: a workspace that names itself would recurse for ever.
    if is_model_folder(path):
        return _source_in(ModelFolder(path))
    raise ConfigError(
        f"{workspace.file}: the key `{key}` names {path}, "
        f"but that is {'a folder without a model' if isdir(path) else 'no model folder'}"
    )


def _why_not(path: Path) -> str:
    if isdir(path) and any(path.glob("*.safetensors")):
        return f"`{path}` (a checkpoint: `powerserve convert hf-to-gguf` makes a model of it)"
    if isdir(path):
        return f"`{path}` (a folder without {MODEL_FILE}, {WEIGHTS_FILE} or {WORKSPACE_FILE})"
    return f"`{path}` (not a GGUF file)" if isfile(path) else f"`{path}`"


def _is_gguf(path: Path) -> bool:
    # By content, not by suffix: download caches name files by their hash.
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}") from None
