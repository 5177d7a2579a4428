"""Which library of kernels is used: the user's, ggml's companion, this machine's, a package's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from powerserve.backend.ggml import locate as ggml_locate
from powerserve.backend.ggml.kernels import locate
from powerserve.core.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, and nothing chosen by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ggml_locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "kernels"


def own_key() -> str:
    """What the names of fitting builds begin with."""
    source = locate.kernel_source()
    assert source is not None
    return locate.build_key(source)


def make_library(folder: Path) -> Path:
    """A library of kernels, as far as file names tell."""
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / locate.library_name()
    library.touch()
    return library


def make_build(cache: Path, name: str, age_s: float = 0.0) -> Path:
    """The library of a finished build."""
    library = make_library(cache / name)
    record = library.with_name(ggml_locate.RECORD)
    record.write_text("{}")
    os.utime(record, (time.time() - age_s,) * 2)
    return library


def make_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library of an installed package, which must not be imported."""
    library = make_library(folder / locate.MODULE)
    library.with_name("__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(folder)
    return library


def make_companion(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library beside the ggml that is in use."""
    for name in ggml_locate.LIBRARIES:
        file = ggml_locate.library_file_names(name, sys.platform)[0]
        make_library(folder).with_name(file).touch()
    monkeypatch.setenv(ggml_locate.ENVIRONMENT_VARIABLE, str(folder))
    return make_library(folder)


def test_at_first_there_is_none() -> None:
    assert locate.kernel_library() is None


def test_each_place_comes_before_the_next(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = make_package(tmp_path / "packages", monkeypatch)
    assert locate.kernel_library() == packaged
    built = make_build(cache, f"{own_key()}-aaaa")
    assert locate.kernel_library() == built
    companion = make_companion(tmp_path / "ggml", monkeypatch)
    assert locate.kernel_library() == companion
    chosen = make_library(tmp_path / "chosen")
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(chosen))
    assert locate.kernel_library() == chosen


def test_the_companion_of_another_ggml_is_no_choice(tmp_path: Path) -> None:
    companion = make_library(tmp_path / "ggml")
    assert locate.kernel_library() is None
    assert locate.kernel_library(tmp_path / "ggml") == companion


def test_builds_of_ggml_may_share_the_library_above_them(tmp_path: Path) -> None:
    shared = make_library(tmp_path / "ggml")
    assert locate.kernel_library(tmp_path / "ggml" / "armv8.2") == shared
    own = make_library(tmp_path / "ggml" / "armv8.6")
    assert locate.kernel_library(tmp_path / "ggml" / "armv8.6") == own


def test_a_missing_file_in_the_environment_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"POWERSERVE_KERNELS is .*none, but there is no such"):
        locate.kernel_library()


def test_the_users_file_may_be_named_from_where_the_user_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make_library(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, library.name)
    assert locate.kernel_library() == library


def test_the_newest_build_that_fits_is_used(cache: Path) -> None:
    key = own_key()
    newest = make_build(cache, f"{key}-bbbb")
    make_build(cache, f"{key}-aaaa", age_s=60)
    make_build(cache, f"{'0' * 12}{key[12:]}-cccc")  # of another source
    make_build(cache, f"{key[:-8]}{'0' * 8}-cccc")  # for another processor
    make_build(cache, f".{key}-dddd.12345678.partial")
    make_build(cache, f"{key}-eeee").unlink()
    assert locate.kernel_library() == newest


def test_any_change_of_the_source_outdates_builds(tmp_path: Path) -> None:
    source = locate.kernel_source()
    assert source is not None
    copy = shutil.copytree(source, tmp_path / "copy")
    assert locate.build_key(copy) == own_key()
    for name in ("panels.h", "pack.cpp"):
        before = locate.build_key(copy)
        with (copy / name).open("a") as file:
            file.write("\n")
        assert locate.build_key(copy) != before
    (copy / "README.md").write_text("")
    with_prose_changed = locate.build_key(copy)
    (copy / "README.md").unlink()
    assert locate.build_key(copy) == with_prose_changed


def test_another_processor_outdates_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    before = own_key()
    monkeypatch.setattr(ggml_locate.machine, "cpu_flags", lambda: frozenset({"avx9"}))
    assert own_key() != before


def test_an_installation_without_the_source_has_no_builds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_build(cache, f"{own_key()}-aaaa")
    monkeypatch.setattr(locate, "native_source", lambda name: None)
    assert locate.kernel_library() is None


def test_locating_imports_nothing_heavy() -> None:
    heavy = ("numpy", "ctypes", "rich", "concurrent.futures", "powerserve.backend.compiler")
    code = (
        "import sys; from powerserve.backend.ggml.kernels import locate; locate.kernel_library();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
