"""Room in the Hugging Face cache: deletes the files of a removed model that nobody else uses.

The cache's layout (blobs, snapshots, refs) is huggingface_hub's documented one; blobs may be
shared between revisions, so a blob goes only with its last reference.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.core.errors import StoreError
from powerserve.storage.store import ModelStore, StoreEntry

if TYPE_CHECKING:
    from huggingface_hub import CachedFileInfo, CachedRevisionInfo


def delete_unused(entry: StoreEntry, store: ModelStore) -> int:
    """Delete the cached files of `entry` that no other entry of `store` uses.

    Returns the bytes that became free. Call it after `store.remove`. Raises StoreError when the
    cache refuses.
    """
    from huggingface_hub import CacheNotFound, scan_cache_dir

    if entry.origin is None:
        return 0
    in_use = {file.path for other in store.entries() for file in other.files}
    paths = {Path(file.path) for file in entry.files if file.path not in in_use}
    try:
        cache = scan_cache_dir()
        revision, siblings = _find_revision(cache.repos, entry)
        if revision is None:
            return 0
        if {file.file_path for file in revision.files} <= paths:
            strategy = cache.delete_revisions(revision.commit_hash)
            strategy.execute()
            return strategy.expected_freed_size
        return _delete_files(revision, siblings, paths)
    except CacheNotFound:
        return 0
    except OSError as error:
        raise StoreError(
            f"the files of {entry.name!r} in the Hugging Face cache could not be deleted: {error}"
        ) from error


def _find_revision(
    repos: Iterable[object], entry: StoreEntry
) -> tuple[CachedRevisionInfo | None, frozenset[CachedRevisionInfo]]:
    """The cached revision of `entry`, and all revisions of its repository."""
    from huggingface_hub import CachedRepoInfo

    assert entry.origin is not None
    for repo in repos:
        assert isinstance(repo, CachedRepoInfo)
        if repo.repo_type == "model" and repo.repo_id == entry.origin.repo:
            for revision in repo.revisions:
                if revision.commit_hash == entry.origin.commit:
                    return revision, repo.revisions
    return None, frozenset()


def _delete_files(
    revision: CachedRevisionInfo, siblings: frozenset[CachedRevisionInfo], paths: set[Path]
) -> int:
    """Delete single files of a revision that other programs use too."""
    doomed = [file for file in revision.files if file.file_path in paths]
    kept = {
        file.blob_path for each in siblings for file in each.files if file.file_path not in paths
    }
    for file in doomed:
        file.file_path.unlink(missing_ok=True)
    return sum(_delete_blob(file) for file in doomed if file.blob_path not in kept)


def _delete_blob(file: CachedFileInfo) -> int:
    file.blob_path.unlink(missing_ok=True)
    return file.size_on_disk
