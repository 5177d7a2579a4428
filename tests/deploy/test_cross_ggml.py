"""How ggml is compiled for other processors, without compiling it: pip is replaced by a copy."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from deploy.compiled import NDK_TOOLCHAIN, compile_library, make_ndk, replace_pip
from powerserve.backend.ggml import arm_levels, locate, native_build
from powerserve.backend.ggml.arm_levels import LEVELS, best_level_folder
from powerserve.core import machine
from powerserve.core.errors import BackendError, BundleError
from powerserve.deploy.bundle import cross_ggml
from powerserve.deploy.bundle.target import find_target
from powerserve.deploy.bundle.toolchain import Toolchain, toolchain_for
from powerserve.storage.progress import SILENT


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder whose libraries the replaced pip "compiles"; good ones are in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return replace_pip(tmp_path, monkeypatch)


@pytest.fixture
def gcc() -> Toolchain:
    return toolchain_for(find_target("linux-aarch64"), None)


def test_each_level_is_compiled_once_for_its_instructions(
    made: Path, gcc: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "the-hosts-compiler")
    monkeypatch.setenv("CFLAGS", "-march=native")
    levels = cross_ggml.build_levels(gcc, SILENT)
    assert list(levels) == list(LEVELS)
    for folder in levels.values():
        assert sorted(path.name for path in folder.iterdir()) == sorted(cross_ggml.LIBRARY_FILES)
    options = shlex.split((made.parent / "CMAKE_ARGS").read_text())
    assert f"-DGGML_CPU_ARM_ARCH={LEVELS[-1].march}" in options
    assert "-DCMAKE_SYSTEM_PROCESSOR=aarch64" in options
    assert (made.parent / "CC").read_text() == ""
    assert "native" not in (made.parent / "CFLAGS").read_text()
    (made / "libggml.so").unlink()  # another compilation would fail
    assert cross_ggml.build_levels(gcc, SILENT) == levels


def test_libraries_that_would_not_load_are_refused(made: Path, gcc: Toolchain) -> None:
    foreign = compile_library(made.parent / "libforeign.so")
    compile_library(made / "libggml-cpu.so", needs=foreign)
    with pytest.raises(BundleError, match=r"libggml-cpu\.so needs libforeign\.so"):
        cross_ggml.build_levels(gcc, SILENT)
    (made / "libggml-cpu.so").unlink()
    with pytest.raises(BundleError, match=r"made no libggml-cpu\.so"):
        cross_ggml.build_levels(gcc, SILENT)


def test_libraries_for_android_fit_its_large_pages(made: Path, tmp_path: Path) -> None:
    toolchain = toolchain_for(find_target("android-ndk"), make_ndk(tmp_path))
    assert toolchain.description == "Android NDK 27.1.5"
    assert "-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-z,max-page-size=16384" in toolchain.cmake_options
    folder = next(iter(cross_ggml.build_levels(toolchain, SILENT).values()))
    assert (folder / "libc++_shared.so").exists()
    compile_library(made / "libggml.so", page_bytes=4096)
    make_ndk(tmp_path, revision="28")
    toolchain = toolchain_for(find_target("android-ndk"), tmp_path / "ndk")
    with pytest.raises(BundleError, match="pages of 4096 bytes, not 16384"):
        cross_ggml.build_levels(toolchain, SILENT)


def test_a_compiler_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BundleError, match=r"aarch64-linux-gnu-g\+\+\); get one with: sudo apt"):
        toolchain_for(find_target("android-glibc"), None)
    with pytest.raises(BundleError, match="name its folder: --ndk DIR"):
        toolchain_for(find_target("android-ndk"), None)
    with pytest.raises(BundleError, match=f"is no Android NDK: it has no {NDK_TOOLCHAIN}"):
        toolchain_for(find_target("android-ndk"), tmp_path)


def test_what_the_compiler_complains_about_is_quoted(
    made: Path, gcc: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [sys.executable, "-c", "print('ggml.c:1: error: no such thing'); exit(1)"]
    monkeypatch.setattr(native_build, "install_command", lambda package, source: failing)
    with pytest.raises(BackendError, match=r"error: no such thing .*armv8\.6\.log"):
        cross_ggml.build_levels(gcc, SILENT)
    kept = {path.name for path in (made.parent / "cache/powerserve/deploy/ggml").iterdir()}
    assert kept == {"armv8.6.log", "lock"}


# ---- the choice on the device --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fp asimd", "armv8.0"),
        ("fp asimd atomics asimddp asimdhp", "armv8.2"),
        ("fp asimd atomics asimddp", "armv8.0"),  # dot products without half precision
        ("fp asimd atomics asimddp asimdhp i8mm sve", "armv8.6"),
        ("fp asimd i8mm", "armv8.0"),
        ("avx2", None),
    ],
)
def test_the_best_level_that_the_processor_can_run_is_chosen(
    tmp_path: Path, flags: str, expected: str | None
) -> None:
    for level in LEVELS:
        (tmp_path / level.name).mkdir()
    found = best_level_folder(tmp_path, flags.split())
    assert found == (tmp_path / expected if expected else None)


def test_the_environment_may_name_a_folder_of_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in locate.LIBRARIES:
        library = tmp_path / "armv8.2" / locate.library_file_names(name, sys.platform)[0]
        library.parent.mkdir(exist_ok=True)
        library.touch()
    monkeypatch.setattr(machine, "cpu_flags", lambda: arm_levels.LEVELS[0].flags)
    monkeypatch.setenv(locate.ENVIRONMENT_VARIABLE, str(tmp_path))
    assert locate.library_folder() == tmp_path / "armv8.2"
