"""Where the helper's executable comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fake_compiler import fake_compiler
from powerserve.backend.qnn.runtime import build
from powerserve.cli.main import main
from powerserve.core.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, and no helper chosen by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(build.HELPER_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "npu-helper"


def test_it_is_compiled_once_for_each_source_and_compiler(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = fake_compiler(cache.parents[1] / "c++", 'cp /bin/true "$out"')
    monkeypatch.setenv("CXX", str(compiler))
    first = build.helper_executable()
    assert subprocess.run([first]).returncode == 0
    written = first.stat().st_mtime_ns
    assert build.helper_executable() == first
    assert first.stat().st_mtime_ns == written
    fake_compiler(compiler, 'cp /bin/true "$out"', version="2.0")
    assert build.helper_executable() != first
    assert len(list(cache.glob("*/*"))) == 2


def test_a_compile_error_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "echo 'noise'; echo 'npu_helper.cpp:1:1: error: no such thing' >&2; exit 1"
    monkeypatch.setenv("CXX", str(fake_compiler(cache.parents[1] / "c++", command)))
    with pytest.raises(BackendError, match=r"be compiled: npu_helper.cpp:1:1: error: no such thin"):
        build.helper_executable()
    assert not list(cache.glob("*/*"))


def test_no_compiler_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendError, match=r"no C\+\+ compiler .* get one with"):
        build.helper_executable()


def test_a_helper_that_is_named_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.HELPER_VARIABLE, "/bin/true")
    assert build.helper_executable() == Path("/bin/true")
    monkeypatch.setenv(build.HELPER_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(BackendError, match=r"POWERSERVE_NPU_HELPER is .*none, which is no program"):
        build.helper_executable()


def test_other_systems_have_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(BackendError, match="runs on Linux and Android only"):
        build.helper_executable()


def test_an_ndks_compiler_is_found(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="is no Android NDK: it has no aarch64-linux-android30-"):
        build.ndk_compiler(tmp_path)
    folder = tmp_path / "toolchains" / "llvm" / "prebuilt" / "linux-x86_64" / "bin"
    folder.mkdir(parents=True)
    compiler = fake_compiler(folder / "aarch64-linux-android30-clang++", "true")
    assert build.ndk_compiler(tmp_path) == str(compiler)


def test_the_command_compiles_for_other_systems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = fake_compiler(tmp_path / "cross-c++", 'cp /bin/true "$out"')
    target = tmp_path / "helper"
    assert main(["qnn", "build-helper", "--compiler", str(compiler), "-o", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert subprocess.run([target]).returncode == 0
    for flags, sentence in (
        (["--compiler", "g++"], "say with -o FILE where"),
        (["--compiler", "no-such-c++", "-o", str(target)], "there is no program 'no-such-c++'"),
        (["-o", str(tmp_path / "none" / "helper")], "-o: there is no folder"),
    ):
        assert main(["qnn", "build-helper", *flags]) == 2
        assert sentence in capsys.readouterr().err


def test_cmake_links_it_as_we_do() -> None:
    text = build.helper_source().with_name("CMakeLists.txt").read_text()
    assert " ".join(build.LINKER_FLAGS) in text
