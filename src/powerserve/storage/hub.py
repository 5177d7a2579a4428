"""Models from the Hugging Face hub, fetched into its own cache and entered in the store.

huggingface_hub lists repositories, finds tokens, places files in the cache and knows its settings
(HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE). The bytes of large files are fetched by our own
transfer, because huggingface_hub starts a file again from nothing after Ctrl-C and trusts what
arrives if its size is right: see docs/decisions/model-downloads.md.
It reads its settings when it is imported and takes 0.4 s for that: only functions import it.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from powerserve import __version__
from powerserve.core.errors import DownloadError, UsageError
from powerserve.storage.builtin import find_builtin
from powerserve.storage.hub_errors import plain_errors
from powerserve.storage.hub_reference import HubReference, parse_reference
from powerserve.storage.network import http_opener
from powerserve.storage.progress import SILENT, Progress
from powerserve.storage.quantisation import choose_files, model_stem
from powerserve.storage.store import HubOrigin, ModelStore, StoredFile
from powerserve.storage.transfer import RemoteFile, disk_errors, download


@dataclass(frozen=True)
class _HubFile:
    """A file of a repository as the hub describes it; only large files have a SHA-256."""

    name: str
    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class _Listing:
    """The files of one commit."""

    commit: str
    files: tuple[_HubFile, ...]


def pull(
    reference: str,
    store: ModelStore,
    *,
    progress: Progress = SILENT,
    revision: str | None = None,
    name: str | None = None,
) -> Path:
    """Fetch a model and enter it in the store; returns its first GGUF file.

    `reference` is `owner/repo[:QUANTISATION|:file.gguf]` or an address on huggingface.co,
    `revision` a branch, tag or commit, `name` what the store shall call it (default: the file's
    name). Files that are cached already are not fetched again; unfinished ones are continued.
    Raises UsageError, DownloadError or StoreError.
    """
    wanted = parse_reference(reference, revision)
    _check_installed()
    if name is not None and find_builtin(name):
        raise UsageError(f"{name!r} is the name of a built-in model; choose another one")
    store.check_writable()
    with plain_errors(wanted):
        listing = _list_cached(wanted) if _is_offline() else _list_remote(wanted)
        names = choose_files([file.name for file in listing.files], wanted.repo, wanted.tag)
        title = store.check_name(name or _default_name(names[0]), wanted.repo)
        by_name = {file.name: file for file in listing.files}
        files = [_fetch(by_name[each], wanted, listing.commit, progress) for each in names]
    origin = HubOrigin(wanted.repo, wanted.revision, listing.commit)
    return store.add(title, files, origin).path


def pull_folder(repo: str, *, progress: Progress = SILENT, skipped: tuple[str, ...] = ()) -> Path:
    """Fetch a repository that is a folder of files, as model folders are; returns the folder.

    Names that begin with one of `skipped` are left out. Nothing enters the store. Files that are
    cached already are not fetched again. Raises UsageError or DownloadError.
    """
    _check_installed()
    from huggingface_hub import snapshot_download

    wanted = parse_reference(repo)
    with plain_errors(wanted):
        if _is_offline():
            return Path(snapshot_download(wanted.repo, local_files_only=True))
        listing = _list_remote(wanted)
        for file in listing.files:
            if not file.name.startswith(skipped):
                _fetch(file, wanted, listing.commit, progress)
        return _cache_folder(wanted.repo) / "snapshots" / listing.commit


def _check_installed() -> None:
    """Bundles for devices come without the client: models are pushed to them."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise DownloadError(
            "models are pulled by huggingface_hub, which is not installed here; pull the model on "
            "another machine and copy its file, or: pip install huggingface_hub"
        )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _list_remote(wanted: HubReference) -> _Listing:
    from huggingface_hub import HfApi

    api = HfApi(library_name="powerserve", library_version=__version__)
    info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
    files = tuple(
        _HubFile(each.rfilename, each.size, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings or ()
    )
    return _Listing(info.sha or wanted.revision, files)


def _list_cached(wanted: HubReference) -> _Listing:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(wanted.repo, revision=wanted.revision, local_files_only=True))
    files = tuple(
        _HubFile(path.relative_to(folder).as_posix(), path.stat().st_size, None)
        for path in sorted(folder.rglob("*.gguf"))
    )
    return _Listing(folder.name, files)


def _fetch(file: _HubFile, wanted: HubReference, commit: str, progress: Progress) -> StoredFile:
    """Bring one file into the cache unless it is there, and say where it is."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(wanted.repo, file.name, revision=commit)
    if isinstance(cached, str) and Path(cached).stat().st_size == file.size_bytes:
        return StoredFile(file.name, cached, file.size_bytes, file.sha256)
    blob = _fetch_blob(file, wanted, commit, progress)
    with disk_errors(_cache_folder(wanted.repo)):
        # Finds the blob and adds the snapshot and the ref; fetches small files, which are no blobs.
        path = Path(
            hf_hub_download(
                wanted.repo, file.name, revision=wanted.revision, library_name="powerserve"
            )
        )
    if blob is not None and not path.is_symlink():  # no symbolic links here: it made a copy
        blob.unlink(missing_ok=True)
    return StoredFile(file.name, str(path), path.stat().st_size, file.sha256)


def _fetch_blob(
    file: _HubFile, wanted: HubReference, commit: str, progress: Progress
) -> Path | None:
    """Fetch a large file to where the cache keeps it; None for a file without SHA-256."""
    from huggingface_hub import constants, hf_hub_url

    if file.sha256 is None or file.size_bytes is None:
        return None
    folder = _cache_folder(wanted.repo)
    blob = folder / "blobs" / file.sha256
    with disk_errors(blob):
        blob.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(wanted.repo, file.name, revision=commit)
    download(
        RemoteFile(url, file.size_bytes, file.sha256, _authorization()),
        blob,
        label=file.name,
        opener=http_opener(),
        progress=progress,
        lock=Path(constants.HF_HUB_CACHE) / ".locks" / folder.name / f"{file.sha256}.lock",
    )
    return blob


def _authorization() -> dict[str, str]:
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _default_name(file_name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", model_stem(file_name)).lstrip("._-")[:128]
