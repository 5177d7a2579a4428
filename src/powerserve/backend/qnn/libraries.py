"""Where Qualcomm's libraries are: a folder named by the user, an installed SDK, or the wheel.

Their licence does not let us distribute them. The wheel `onnxruntime-qnn` carries them for x86-64
and ARM Linux and Windows; for Android they come from the QNN (QAIRT) SDK.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from powerserve.core.errors import BackendError

SDK_VARIABLE = "QNN_SDK_ROOT"
BACKEND_LIBRARY = "libQnnHtp.so"
SYSTEM_LIBRARY = "libQnnSystem.so"
ANDROID_LINKER = Path("/system/bin/linker64")  # there on Android, whichever C library runs Python

_SDK_FOLDERS = {
    "x86_64": ("x86_64-linux-clang",),
    "aarch64": ("aarch64-oe-linux-gcc*", "aarch64-ubuntu-gcc*"),
}
_SDK_FOLDERS_ANDROID = ("aarch64-android",)


@dataclass(frozen=True, slots=True)
class QnnLibraries:
    """A folder with Qualcomm's libraries for this machine."""

    folder: Path

    @property
    def backend(self) -> Path:
        """The library that executes graphs."""
        return self.folder / BACKEND_LIBRARY

    @property
    def system(self) -> Path:
        """The library that describes context binaries."""
        return self.folder / SYSTEM_LIBRARY


def find_libraries(folder: Path | None = None) -> QnnLibraries:
    """The libraries in `folder`; without one, those of QNN_SDK_ROOT, else of the wheel.

    Raises:
        BackendError: there are none.
    """
    candidates = list(_candidates()) if folder is None else [folder]
    for candidate in candidates:
        if all((candidate / name).is_file() for name in (BACKEND_LIBRARY, SYSTEM_LIBRARY)):
            return QnnLibraries(candidate.absolute())
    if folder is not None:
        raise BackendError(f"{folder} lacks {BACKEND_LIBRARY} or {SYSTEM_LIBRARY}")
    raise BackendError(
        "Qualcomm's libraries are missing; install them with `pip install onnxruntime-qnn`, or set "
        f"{SDK_VARIABLE} to the folder of a QNN SDK"
    )


def on_android() -> bool:
    """Whether this is an Android system."""
    return ANDROID_LINKER.exists()


def _candidates() -> Iterator[Path]:
    if sdk := os.environ.get(SDK_VARIABLE):
        known = _SDK_FOLDERS.get(platform.machine(), ())
        for pattern in _SDK_FOLDERS_ANDROID if on_android() else known:
            yield from sorted(Path(sdk).glob(f"lib/{pattern}"), reverse=True)
    spec = importlib.util.find_spec("onnxruntime_qnn")
    yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())
