"""The model store: one folder that knows every model by a short name.

    <name>.gguf   a model that lives in the store itself (the built-in one, or put there by hand)
    <name>.json   an entry for a model in the Hugging Face cache: repository, commit and files

Weights are not copied out of the Hugging Face cache, so other programs share them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from powerserve.core.errors import ConfigError, ModelNotFoundError, StoreError
from powerserve.storage.json_file import read_json, write_json
from powerserve.storage.quantisation import quantisation_label

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # no +: `main+draft` names two models


@dataclass(frozen=True)
class StoredFile:
    """One GGUF file of a model: its name in the repository, and where it is on this machine."""

    name: str
    path: str
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True)
class HubOrigin:
    """Where a downloaded model came from: `revision` as asked for, `commit` as resolved."""

    repo: str
    revision: str
    commit: str


@dataclass(frozen=True)
class StoreEntry:
    """A model in the store. `files` are its shards in order; most models have one."""

    name: str
    files: tuple[StoredFile, ...]
    origin: HubOrigin | None = None

    @property
    def path(self) -> Path:
        """The first (usually the only) GGUF file."""
        return Path(self.files[0].path)

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def quantisation(self) -> str | None:
        """The quantisation that the file name tells, such as `Q4_K_M`."""
        return quantisation_label(self.files[0].name)

    @property
    def source(self) -> str:
        """What `powerserve pull` would take to fetch the same file; `local` for other files."""
        return f"{self.origin.repo}:{self.files[0].name}" if self.origin else "local"

    @property
    def missing_files(self) -> tuple[StoredFile, ...]:
        """The files that were deleted behind the store's back."""
        return tuple(file for file in self.files if not Path(file.path).is_file())


def default_folder(
    environment: Mapping[str, str] | None = None, platform: str = sys.platform
) -> Path:
    """`$POWERSERVE_HOME/models`, else the platform's folder for application data."""
    variables = os.environ if environment is None else environment
    if home := variables.get("POWERSERVE_HOME"):
        return Path(home).expanduser() / "models"
    if platform == "win32":
        data = Path(variables.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = Path(variables.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "powerserve" / "models"


class ModelStore:
    """The models below one folder, which is created when the first one is added."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def find(self, name: str) -> Path | None:
        """The first GGUF file of the model called `name`, or None.

        `owner/repo`, `owner/repo:Q4_K_M` and `owner/repo:file.gguf` find downloads as well.
        Raises ModelNotFoundError if the model is known, but its files were deleted.
        """
        entry = self.entry(name)
        if entry is None:
            return None
        if missing := entry.missing_files:
            raise ModelNotFoundError(_deleted(entry, missing[0]))
        return entry.path

    def entry(self, name: str) -> StoreEntry | None:
        """The entry called `name` (in any case), or the one that a repository names, or None."""
        if "/" in name:
            return next((e for e in self.entries() if _comes_from(e, name)), None)
        for file in self._files():
            if file.stem.casefold() == name.casefold():
                return _read(file)
        return None

    def entries(self) -> tuple[StoreEntry, ...]:
        """All models by name. Raises StoreError for a folder or an entry that cannot be read."""
        return tuple(_read(file) for file in self._files())

    def add(self, name: str, files: Sequence[StoredFile], origin: HubOrigin) -> StoreEntry:
        """Write the entry for a downloaded model, replacing one of the same origin.

        Raises StoreError for a name that cannot be used or a folder that cannot be written.
        """
        entry = StoreEntry(self.check_name(name, origin.repo), tuple(files), origin)
        self.check_writable()
        with self._errors():
            write_json(self._entry_file(entry), asdict(entry))
        return entry

    def remove(self, name: str) -> StoreEntry:
        """Forget a model and delete what lies in the store itself; returns what was removed.

        Downloads stay in the Hugging Face cache: `hub_cache.delete_unused` removes those.
        Raises ModelNotFoundError.
        """
        entry = self.entry(name)
        if entry is None:
            raise ModelNotFoundError(
                f"there is no model named {name!r} in the store; `powerserve list` shows what is"
            )
        with self._errors():
            (entry.path if entry.origin is None else self._entry_file(entry)).unlink()
        return entry

    def check_name(self, name: str, repo: str | None = None) -> str:
        """`name` if a model from `repo` may have it, else StoreError."""
        if not _NAME.fullmatch(name):
            raise StoreError(
                f"{name!r} cannot be a model's name: use letters, digits and . _ - "
                "(at most 128), beginning with a letter or digit"
            )
        there = self.entry(name)
        if there is not None and (there.origin is None or there.origin.repo != repo):
            raise StoreError(
                f"the store already has a model named {there.name!r} (from {there.source}); "
                "choose another name with --name"
            )
        return name

    def check_writable(self) -> None:
        """Create the folder and prove that it can be written, else StoreError."""
        from tempfile import TemporaryFile  # used by downloads only

        with self._errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()

    def _entry_file(self, entry: StoreEntry) -> Path:
        return self.folder / f"{entry.name}.json"

    def _files(self) -> list[Path]:
        """Entries and GGUF files by name; an entry hides a file of the same name."""
        if not self.folder.exists():
            return []
        with self._errors("read"):
            found = [path for path in self.folder.iterdir() if _is_model(path)]
        found.sort(key=lambda path: path.suffix)  # .gguf before .json, which thus wins
        by_name = {path.stem: path for path in found}
        return sorted(by_name.values(), key=lambda path: path.stem.casefold())

    @contextmanager
    def _errors(self, action: str = "written") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the model store {self.folder} cannot be {action} "
                f"({error.strerror or error}); set POWERSERVE_HOME to a folder of yours"
            ) from error


def _is_model(path: Path) -> bool:
    return path.suffix in (".json", ".gguf") and not path.name.startswith(".")


def _read(path: Path) -> StoreEntry:
    if path.suffix == ".gguf":
        file = StoredFile(path.name, str(path), path.stat().st_size)
        return StoreEntry(path.stem, (file,))
    try:
        entry = read_json(path, StoreEntry)
    except ConfigError as error:
        raise StoreError(f"{error}; delete that file and pull the model again") from error
    if not entry.files or entry.name != path.stem:
        raise StoreError(f"{path} is not a store entry; delete it and pull the model again")
    return entry


def _comes_from(entry: StoreEntry, reference: str) -> bool:
    """Whether `owner/repo[:tag]` means this entry; a tag is a quantisation or a file name."""
    repo, _, tag = reference.partition(":")
    if entry.origin is None or entry.origin.repo.casefold() != repo.casefold():
        return False
    names = (entry.files[0].name, Path(entry.files[0].name).name, entry.quantisation or "")
    return not tag or tag.casefold() in (name.casefold() for name in names)


def _deleted(entry: StoreEntry, file: StoredFile) -> str:
    pull = f"`powerserve pull {entry.source} --name {entry.name}`"
    return f"the file {file.path} of model {entry.name!r} was deleted; {pull} fetches it again"
