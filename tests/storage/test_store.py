"""The store's folder: entries, names, and clear words when something is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from powerserve.core.errors import ModelNotFoundError, StoreError
from powerserve.storage.store import HubOrigin, ModelStore, StoredFile, default_folder
from privileges import permissions_apply

ORIGIN = HubOrigin("Owner/Repo", "main", "c0ffee")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def downloaded(tmp_path: Path, name: str = "Model-Q8_0.gguf", size: int = 10) -> StoredFile:
    path = tmp_path / "cache" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    return StoredFile(name, str(path), size, "0" * 64)


def test_a_download_is_found_by_name_and_by_repository(store: ModelStore, tmp_path: Path) -> None:
    file = downloaded(tmp_path)
    store.add("my-model", [file], ORIGIN)
    for name in (
        "my-model", "My-Model", "owner/repo", "Owner/Repo:q8_0", "Owner/Repo:Model-Q8_0.gguf",
    ):  # fmt: skip
        assert store.find(name) == Path(file.path), name
    for name in ("other", "owner/other", "Owner/Repo:Q4_0"):
        assert store.find(name) is None, name


def test_a_gguf_file_put_into_the_folder_is_a_model(store: ModelStore) -> None:
    store.folder.mkdir()
    (store.folder / "mine.Q4_0.gguf").write_bytes(b"GGUF")
    (entry,) = store.entries()
    assert (entry.name, entry.size_bytes, entry.quantisation) == ("mine.Q4_0", 4, "Q4_0")
    assert store.find("MINE.q4_0") == store.folder / "mine.Q4_0.gguf"


def test_entries_are_sorted_and_unfinished_files_are_not_among_them(
    store: ModelStore, tmp_path: Path
) -> None:
    store.add("b", [downloaded(tmp_path)], ORIGIN)
    store.add("A", [downloaded(tmp_path)], ORIGIN)
    for name in (".x.json", ".y.gguf", "z.gguf.partial", "notes.txt"):
        (store.folder / name).write_bytes(b"?")
    assert [entry.name for entry in store.entries()] == ["A", "b"]


def test_shards_count_together_and_the_first_is_the_model(
    store: ModelStore, tmp_path: Path
) -> None:
    shards = [downloaded(tmp_path, f"m-0000{n}-of-00002.gguf", n * 5) for n in (1, 2)]
    entry = store.add("m", shards, ORIGIN)
    assert entry.size_bytes == 15
    assert store.find("m") == Path(shards[0].path)


def test_a_file_deleted_from_the_cache_names_the_command_that_fetches_it(
    store: ModelStore, tmp_path: Path
) -> None:
    file = downloaded(tmp_path)
    store.add("m", [file], ORIGIN)
    Path(file.path).unlink()
    with pytest.raises(ModelNotFoundError, match=r"powerserve pull Owner/Repo:Model-Q8_0\.gguf"):
        store.find("m")
    assert [entry.name for entry in store.entries()] == ["m"]


def test_removing_leaves_cached_files_and_deletes_own_ones(
    store: ModelStore, tmp_path: Path
) -> None:
    file = downloaded(tmp_path)
    store.add("m", [file], ORIGIN)
    (store.folder / "own.gguf").write_bytes(b"GGUF")
    assert store.remove("m").origin == ORIGIN
    store.remove("own")
    assert store.entries() == ()
    assert Path(file.path).exists()
    with pytest.raises(ModelNotFoundError, match="powerserve list"):
        store.remove("m")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", ".hidden", "-x", "a+b", "x" * 129])
def test_names_that_could_leave_the_folder_are_refused(store: ModelStore, name: str) -> None:
    with pytest.raises(StoreError):
        store.check_name(name)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "../../x.gguf", "", ".", "\0"])
def test_looking_up_a_path_finds_nothing(store: ModelStore, name: str) -> None:
    store.folder.mkdir()
    (store.folder.parent / "secret.gguf").write_bytes(b"GGUF")
    assert store.find(name) is None


def test_a_name_belongs_to_one_repository(store: ModelStore, tmp_path: Path) -> None:
    store.add("m", [downloaded(tmp_path)], ORIGIN)
    store.add("m", [downloaded(tmp_path)], HubOrigin("Owner/Repo", "main", "newer"))
    with pytest.raises(StoreError, match="--name"):
        store.add("m", [downloaded(tmp_path)], HubOrigin("Other/Repo", "main", "c0ffee"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "m"}', '{"name": 3, "files": []}'])
def test_a_damaged_entry_says_which_file_to_delete(store: ModelStore, text: str) -> None:
    store.folder.mkdir()
    (store.folder / "m.json").write_text(text)
    with pytest.raises(StoreError, match=r"m\.json.*delete"):
        store.find("m")


def test_an_entry_is_plain_json(store: ModelStore, tmp_path: Path) -> None:
    store.add("m", [downloaded(tmp_path)], ORIGIN)
    written = json.loads((store.folder / "m.json").read_text())
    assert written["origin"] == {"repo": "Owner/Repo", "revision": "main", "commit": "c0ffee"}
    assert os.listdir(store.folder) == ["m.json"]  # and no temporary file


def test_a_folder_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = ModelStore(tmp_path / "file" / "models")
    with pytest.raises(StoreError, match="POWERSERVE_HOME"):
        store.check_writable()
    assert store.entries() == ()


def test_a_read_only_folder_can_be_read_but_not_added_to(store: ModelStore, tmp_path: Path) -> None:
    store.add("m", [downloaded(tmp_path)], ORIGIN)
    store.folder.chmod(0o555)
    try:
        assert store.find("m")
        with permissions_apply(), pytest.raises(StoreError, match="POWERSERVE_HOME"):
            store.add("n", [downloaded(tmp_path)], ORIGIN)
    finally:
        store.folder.chmod(0o755)


def test_where_the_store_is_on_each_platform() -> None:
    home = Path.home()
    chosen = {"POWERSERVE_HOME": "/data/ps", "XDG_DATA_HOME": "/x"}
    assert default_folder(chosen, "linux") == Path("/data/ps/models")
    assert default_folder({"XDG_DATA_HOME": "/x"}, "linux") == Path("/x/powerserve/models")
    assert default_folder({}, "linux") == home / ".local/share/powerserve/models"
    assert default_folder({}, "darwin") == home / "Library/Application Support/powerserve/models"
    assert default_folder({"LOCALAPPDATA": "/l"}, "win32") == Path("/l/powerserve/models")
