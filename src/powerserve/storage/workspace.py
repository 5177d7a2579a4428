"""A workspace: the folder with workspace.json that the original's programs take with `-d`.

    <workspace>/workspace.json  hparams.json  bin/  qnn_libs/  <model>/ …

workspace.json names the main model's folder, the draft model's (or "") and the hparams file.
"""

from __future__ import annotations

from dataclasses import dataclass
from os.path import isfile
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from powerserve.core.errors import ConfigError
from powerserve.storage.hparams import Hparams, read_hparams
from powerserve.storage.json_file import read_json, write_json

WORKSPACE_FILE = "workspace.json"
HPARAMS_FILE = "hparams.json"
EXECUTABLES_FOLDER = "bin"
QNN_LIBS_FOLDER = "qnn_libs"
RESERVED_NAMES = (WORKSPACE_FILE, HPARAMS_FILE, EXECUTABLES_FOLDER, QNN_LIBS_FOLDER)


@dataclass(frozen=True, slots=True)
class WorkspaceFile:
    """The keys of workspace.json, in the order they are written in."""

    executables: str = EXECUTABLES_FOLDER
    hparams_config: str = ""
    model_main: str = ""
    model_draft: str | None = ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace folder and what its workspace.json says."""

    folder: Path
    file: Path  # workspace.json, or what `--workspace-config` names instead
    settings: WorkspaceFile

    @classmethod
    def open(cls, folder: Path, file: Path | None = None) -> Workspace:
        """Read `file`, by default the folder's workspace.json. Raises ConfigError."""
        file = file or folder / WORKSPACE_FILE
        if not folder.is_dir():
            raise ConfigError(f"there is no workspace folder {folder}")
        if not file.is_file():
            raise ConfigError(
                f"{folder} is not a workspace, for there is no file {file}: "
                f"make one with `powerserve create -m MODEL_FOLDER -o {folder}`"
            )
        return cls(folder, file, read_json(file, WorkspaceFile))

    @property
    def main_model(self) -> Path:
        """The main model's folder. Raises ConfigError where none is named."""
        if not self.settings.model_main:
            raise ConfigError(f"{self.file}: the key `model_main` names no model folder")
        return self._inside("model_main", self.settings.model_main)

    @property
    def draft_model(self) -> Path | None:
        """The draft model's folder, if one is named. Raises ConfigError."""
        name = self.settings.model_draft
        return self._inside("model_draft", name) if name else None

    @property
    def hparams(self) -> Hparams:
        """What the hparams file says; built-in defaults where none is named. Raises ConfigError."""
        name = self.settings.hparams_config
        return read_hparams(self._inside("hparams_config", name)) if name else Hparams()

    def _inside(self, key: str, name: str) -> Path:
        if escapes_folder(name):
            raise ConfigError(
                f"{self.file}: the key `{key}` must name something inside {self.folder}, "
                f"but `{name}` leads elsewhere"
            )
        return self.folder / name


def is_workspace(folder: Path) -> bool:
    """Whether the folder holds a workspace.json."""
    return isfile(folder / WORKSPACE_FILE)


def write_workspace(folder: Path, main: str, draft: str = "") -> None:
    """Write workspace.json for models in the sub-folders `main` and `draft`. Raises OSError."""
    write_json(
        folder / WORKSPACE_FILE,
        {
            "executables": EXECUTABLES_FOLDER,
            "hparams_config": HPARAMS_FILE,
            "model_main": main,
            "model_draft": draft,
        },
    )


def escapes_folder(name: str) -> bool:
    """Whether `folder / name` is anything but a place below `folder`, on any operating system."""
    paths: tuple[PurePath, ...] = (PurePosixPath(name), PureWindowsPath(name))
    return "\0" in name or any(
        path.anchor or path.drive or not path.parts or ".." in path.parts for path in paths
    )
