"""The source package of the pinned ggml, fetched once from the package index."""

from __future__ import annotations

from pathlib import Path

from powerserve.backend.ggml.locate import PACKAGE, PACKAGE_VERSION
from powerserve.core.errors import DownloadError
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.package_index import locate_wheel, machine_settings
from powerserve.storage.progress import Progress
from powerserve.storage.transfer import RemoteFile, download

ARCHIVE = f"{PACKAGE.replace('-', '_')}-{PACKAGE_VERSION}.tar.gz"
SIZE_BYTES = 7_299_183
SHA256 = "e47ff53506342959ffb3ce15380b82828fea10ec5f208f9ef6915895f1a7a176"


def fetch_ggml_source(progress: Progress) -> Path:
    """The archive's path in the cache. Raises DownloadError."""
    folder = cache_folder() / "deploy" / "ggml"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / ARCHIVE
    if target.exists() and target.stat().st_size == SIZE_BYTES:
        return target
    settings = machine_settings()
    opener = settings.opener()
    failures = [] if settings.urls else ["pip is set to use no package index"]
    for index_url in settings.urls:
        try:
            found = locate_wheel(index_url, PACKAGE, ARCHIVE, opener)
        except DownloadError as error:
            failures.append(str(error))
            continue
        remote = RemoteFile(found.url, SIZE_BYTES, SHA256, found.headers)
        lock = target.with_name(f".{ARCHIVE}.lock")
        download(remote, target, label="ggml's source", opener=opener, progress=progress, lock=lock)
        return target
    raise DownloadError(f"{'; '.join(failures)}; ggml's source can't be fetched")
