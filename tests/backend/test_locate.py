"""Which ggml is used: the user's choice, a build for this very machine, or the wheel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from powerserve.backend.ggml import locate
from powerserve.core.errors import BackendError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, and no library chosen by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "ggml"


def make_build(cache: Path, name: str, age_s: float = 0.0) -> Path:
    """A finished build, as far as file names tell."""
    folder = cache / name
    folder.mkdir(parents=True)
    for library in locate.LIBRARIES:
        (folder / locate.library_file_names(library, sys.platform)[0]).touch()
    record = folder / locate.RECORD
    record.write_text(json.dumps({"version": "1", "features": [], "compiler": "c"}))
    os.utime(record, (time.time() - age_s,) * 2)
    return folder


def test_the_wheel_serves_where_nothing_was_built() -> None:
    folder = locate.library_folder()
    assert folder == locate.wheel_folder()
    assert locate.origin_of(folder) == "wheel"


def test_locating_imports_nothing_heavy() -> None:
    code = (
        "import sys; from powerserve.backend.ggml import locate; locate.library_folder();"
        "print([name for name in ('libggml', 'numpy', 'ctypes', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_newest_build_for_this_machine_comes_before_the_wheel(cache: Path) -> None:
    newest = make_build(cache, f"{locate.machine_key()}-bbbb")
    make_build(cache, f"{locate.machine_key()}-aaaa", age_s=60)
    assert locate.library_folder() == newest
    assert locate.origin_of(newest) == "native"


def test_builds_for_other_machines_and_unfinished_ones_are_passed_over(cache: Path) -> None:
    make_build(cache, "0.20.2.post1-x86_64-00000000-aaaa")
    make_build(cache, f".{locate.machine_key()}-aaaa.12345678.partial")
    (make_build(cache, f"{locate.machine_key()}-bbbb") / locate.RECORD).unlink()
    damaged = make_build(cache, f"{locate.machine_key()}-cccc")
    (damaged / locate.library_file_names("ggml-cpu", sys.platform)[0]).unlink()
    assert locate.library_folder() == locate.wheel_folder()


def test_the_environment_decides_above_all(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = make_build(cache.parent, "chosen")
    make_build(cache, f"{locate.machine_key()}-aaaa")
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(chosen))
    assert locate.library_folder() == chosen


def test_an_empty_folder_in_the_environment_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(tmp_path))
    with pytest.raises(BackendError, match=r"POWERSERVE_GGML_DIR is .* no ggml library"):
        locate.library_folder()


def test_without_any_library_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "wheel_folder", lambda: None)
    with pytest.raises(BackendError, match=r"pip install libggml-python==0\.20\.2"):
        locate.library_folder()


def test_the_version_is_the_one_that_pyproject_pins() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert f"{locate.PACKAGE}=={locate.PACKAGE_VERSION}" in project["dependencies"]


@pytest.mark.parametrize(
    ("system", "name"),
    [("linux", "libggml-cpu.so"), ("darwin", "libggml-cpu.dylib"), ("win32", "ggml-cpu.dll")],
)
def test_library_names_by_system(system: str, name: str) -> None:
    assert name in locate.library_file_names("ggml-cpu", system)


def test_only_instruction_sets_outdate_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate.platform, "machine", lambda: "x86_64")
    keys = []
    for flags in ("avx2 fma", "avx2 fma ibrs md_clear", "avx2 fma avx512f"):
        monkeypatch.setattr(
            locate.machine, "cpu_flags", lambda flags=flags: frozenset(flags.split())
        )
        keys.append(locate.machine_key())
    assert keys[0] == keys[1] != keys[2]


def test_all_features_of_an_arm_processor_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(locate.machine, "cpu_flags", lambda: frozenset({"asimd", "i8mm"}))
    assert locate.instruction_sets() == ["asimd", "i8mm"]


def test_describing_the_wheel() -> None:
    folder = locate.library_folder()
    info = locate.describe_library(folder)
    assert (info.folder, info.origin) == (folder, "wheel")
    assert locate.PACKAGE_VERSION.startswith(info.version)


def test_describing_what_does_not_load(cache: Path) -> None:
    with pytest.raises(BackendError, match=r"do not work here: .*cannot be loaded"):
        locate.describe_library(make_build(cache, "empty-files"))
