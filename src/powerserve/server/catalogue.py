"""Which models a client may ask for, and the files they consist of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import isfile  # False, unlike Path's, for names that are no names
from pathlib import Path

from powerserve.core.errors import ModelNotFoundError, PowerServeError
from powerserve.server.bounds import MAX_NAME_LENGTH
from powerserve.server.errors import ApiError, ErrorKind, invalid
from powerserve.storage.atomic import is_partial
from powerserve.storage.model_folder import is_model_folder
from powerserve.storage.resolve import ModelSource, resolve_model
from powerserve.storage.store import ModelStore
from powerserve.storage.workspace import RESERVED_NAMES, escapes_folder, is_workspace

_LATER_SHARD = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")  # of a split model
_MAX_LISTED = 20  # names in an error


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A name that `find` answers to."""

    name: str
    path: Path

    @property
    def created(self) -> int:
        """When the file or folder was last changed, in seconds since 1970."""
        try:
            return int(self.path.stat().st_mtime)
        except OSError:  # deleted in the meantime
            return 0


class Catalogue:
    """Names of models: one given file, or those of a work folder and of the store.

    All methods read the disk. Names are untrusted: without `allow_paths` they lead nowhere but
    below the work folder and into the store.
    """

    def __init__(
        self,
        *,
        fixed: ModelSource | None = None,
        work_folder: Path | None = None,
        store: ModelStore | None = None,
        allow_paths: bool = False,
    ) -> None:
        """`fixed` is the only model there is, if given."""
        self._fixed = fixed
        self._work_folder = work_folder
        self._store = store
        self._allow_paths = allow_paths

    @property
    def store(self) -> ModelStore | None:
        """Where models can be added; None if there is but the one."""
        return None if self._fixed is not None else self._store

    def known(self) -> list[KnownModel]:
        """All models by name; the default one first, if there is one."""
        if self._fixed is not None:
            return [KnownModel(self._fixed.name, self._fixed.weights)]
        models: dict[str, KnownModel] = {}
        for model in (*self._in_work_folder(), *self._in_store()):
            models.setdefault(model.name, model)
        return list(models.values())

    def find(self, name: str) -> ModelSource:
        """The files of the model called `name`, "" being the default one. Raises ApiError."""
        if self._fixed is not None:
            return self._find_fixed(self._fixed, name)
        if len(name) > MAX_NAME_LENGTH:  # each `+` in it doubles what has to be looked at
            raise _unknown(f"{name[:MAX_NAME_LENGTH]}…", [model.name for model in self.known()])
        name = name or self._default_name()
        try:
            return self._resolve(name)
        except ModelNotFoundError as error:
            known = [model.name for model in self.known()]
            if name in known:  # it is there, but incomplete
                raise
            raise _unknown(name, known) from error

    def _resolve(self, name: str) -> ModelSource:
        return resolve_model(
            name,
            work_folder=self._work_folder,
            store=_Files(self._work_folder, self._store),
            allow_paths=self._allow_paths,
        )

    def _find_fixed(self, fixed: ModelSource, name: str) -> ModelSource:
        if name not in ("", fixed.name):
            raise _unknown(name, [fixed.name])
        return fixed

    def _default_name(self) -> str:
        """The name that "" stands for: a workspace's main model, or the only model there is.

        The store counts only if the work folder has no model.
        """
        if self._work_folder is not None and is_workspace(self._work_folder):
            return ""
        own = [model.name for model in self._in_work_folder()]
        names = own or [model.name for model in self._in_store()]
        if len(names) == 1:
            return names[0]
        raise invalid(f"name a model in the field `model`: {_listed(names)}", "model")

    def _in_work_folder(self) -> Iterator[KnownModel]:
        if self._work_folder is None:
            return
        try:
            entries = sorted(self._work_folder.iterdir())
        except OSError:
            return
        for path in entries:
            if path.name in RESERVED_NAMES or is_partial(path):
                continue
            if _LATER_SHARD.search(path.name):
                continue
            if path.suffix == ".gguf" and path.is_file():
                yield KnownModel(path.stem, path)
            elif is_workspace(path) or is_model_folder(path):
                yield KnownModel(path.name, path)

    def _in_store(self) -> Iterator[KnownModel]:
        if self._store is None:
            return
        try:
            entries = self._store.entries()
        except PowerServeError:
            return  # one broken entry shall not hide the work folder's models
        for entry in entries:
            if not entry.missing_files:
                yield KnownModel(entry.name, entry.path)


@dataclass(frozen=True, slots=True)
class _Files:
    """Looks names up as GGUF files of the work folder, then in the store."""

    work_folder: Path | None
    store: ModelStore | None

    def find(self, name: str) -> Path | None:
        if self.work_folder is not None and not escapes_folder(name):
            file = self.work_folder / f"{name}.gguf"
            if isfile(file):
                return file
        return None if self.store is None else self.store.find(name)


def _unknown(name: str, known: list[str]) -> ApiError:
    return ApiError(
        ErrorKind.NOT_FOUND,
        f"there is no model {name!r} here; {_listed(known)}",
        param="model",
        code="model_not_found",
    )


def _listed(names: list[str]) -> str:
    if not names:
        return "there are none at all: `powerserve pull` fetches one"
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"there are: {', '.join(names[:_MAX_LISTED])}{more}"
