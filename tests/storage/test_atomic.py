"""Files and folders appear whole or not at all."""

import os
from pathlib import Path

import pytest

from powerserve.storage import atomic


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_bytes_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a b.json"
    path.write_bytes(b"old and longer")
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a b.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic.new_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_final_name_is_not_visible_while_writing(tmp_path: Path) -> None:
    with atomic.new_file(tmp_path / "file") as file:
        file.write(b"half")
        file.flush()
        (partial,) = tmp_path.iterdir()
        assert atomic.is_partial(partial)
    assert names(tmp_path) == ["file"]


def test_mode_is_what_the_umask_leaves(tmp_path: Path) -> None:
    earlier = os.umask(0o027)
    try:
        atomic.write_bytes(tmp_path / "plain", b"")
        atomic.write_bytes(tmp_path / "program", b"", mode=atomic.EXECUTABLE_MODE)
    finally:
        os.umask(earlier)
    assert (tmp_path / "plain").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "program").stat().st_mode & 0o777 == 0o750


def test_new_folder_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    with atomic.new_folder(target) as folder:
        (folder / "new").write_text("")
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("dangling", [True, False])
def test_new_folder_replaces_a_link_and_not_its_target(tmp_path: Path, dangling: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    if not dangling:
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("")
    (tmp_path / "model").symlink_to(elsewhere)
    with atomic.new_folder(tmp_path / "model"):
        pass
    assert not (tmp_path / "model").is_symlink()
    assert names(tmp_path) == (["model"] if dangling else ["elsewhere", "model"])
    assert dangling or names(elsewhere) == ["precious"]


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").write_text("")
    with pytest.raises(ValueError), atomic.new_folder(target) as folder:
        (folder / "new").write_text("")
        raise ValueError
    assert names(tmp_path) == ["model"]
    assert names(target) == ["old"]


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)  # 254 bytes
    atomic.write_bytes(path, b"x")
    assert names(tmp_path) == [path.name]


def test_only_our_own_temporary_names_count_as_partial() -> None:
    assert atomic.is_partial(atomic.partial_path(Path("x/model")))
    for name in ("model.partial", ".model.partial", ".model.12345678", "model.12345678.partial"):
        assert not atomic.is_partial(Path(name))
