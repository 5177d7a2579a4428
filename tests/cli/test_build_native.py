"""`powerserve build-native`: both parts, each alone, and one that fails beside one that does not.

pip is replaced by a command that copies the wheel's libraries, the C++ compiler by a script.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import PROGRAM, status_of
from fake_compiler import fake_compiler
from powerserve.backend.ggml import locate, native_build
from powerserve.backend.ggml.kernels import build as kernel_build
from powerserve.backend.ggml.kernels import locate as kernel_locate
from powerserve.core.errors import BackendError

Capture = pytest.CaptureFixture[str]
# A library with the kernels' version and an instruction set, as far as describing it goes.
KERNELS = "a stand-in for the kernels"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, nothing chosen by the environment, and a compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in (locate.ENVIRONMENT_VARIABLE, kernel_locate.ENVIRONMENT_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "c++", f'echo "{KERNELS}" > "$out"')))
    return tmp_path / "cache" / "powerserve"


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """ggml is copied from the wheel; what the compiler makes is taken for working kernels."""
    code = f"import sys, shutil; shutil.copytree({str(locate.wheel_folder())!r}, sys.argv[1])"

    def command(package: Path) -> list[str]:
        return [sys.executable, "-c", code, str(package / "libggml" / "lib")]

    def describe(library: Path, *, check: bool = False) -> tuple[str, ...]:
        assert library.read_text().strip() == KERNELS
        return ("avx9", "avx8")

    monkeypatch.setattr(native_build, "install_command", command)
    monkeypatch.setattr(kernel_locate, "describe_kernels", describe)


def test_both_parts_are_built_and_used(cache: Path, capsys: Capture) -> None:
    assert status_of("build-native") == 0
    printed = capsys.readouterr()
    assert f"for this machine is in {locate.library_folder()}" in printed.out
    assert f"kernels for this machine are in {cache / 'kernels'}" in printed.out
    assert "Instruction sets: avx9 avx8" in printed.out
    assert "not used" not in printed.out
    assert "100 % linking" in printed.err
    assert locate.library_folder() == locate.native_folder()
    assert kernel_locate.kernel_library() is not None


@pytest.mark.parametrize(("part", "other"), [("ggml", "kernels"), ("kernels", "ggml")])
def test_a_part_can_be_built_alone(cache: Path, part: str, other: str) -> None:
    assert status_of("build-native", "--only", part) == 0
    assert list((cache / part).glob(f"*/{locate.RECORD}"))
    assert not (cache / other).exists()


def test_a_failure_of_one_part_leaves_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    failing = [sys.executable, "-c", "print('ggml.c:1: error: no such thing'); exit(1)"]
    monkeypatch.setattr(native_build, "install_command", lambda package: failing)
    assert status_of("build-native") == 2
    printed = capsys.readouterr()
    assert "error: the build failed: ggml.c:1: error: no such thing" in printed.err
    assert "PowerServe's kernels for this machine are in" in printed.out
    assert kernel_locate.kernel_library() is not None and locate.native_folder() is None


def test_kernels_that_do_not_work_leave_ggml(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def describe(library: Path, *, check: bool = False) -> tuple[str, ...]:
        raise BackendError("the kernels are off")

    monkeypatch.setattr(kernel_locate, "describe_kernels", describe)
    assert status_of("build-native") == 2
    assert "error: the kernels are off" in capsys.readouterr().err
    assert kernel_locate.kernel_library() is None and locate.native_folder() is not None


def test_a_missing_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert status_of("build-native") == 2
    assert capsys.readouterr().err.count("there is no C++ compiler (no-such-compiler)") == 1


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c++"))  # a file
    assert status_of("build-native") == 2
    errors = capsys.readouterr().err
    for folder in ("ggml", "kernels"):
        assert f"{tmp_path / 'c++' / 'powerserve' / folder} cannot be written: " in errors


def test_kernels_of_the_users_choice_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    chosen = tmp_path / "chosen.so"
    chosen.write_text(KERNELS)
    monkeypatch.setenv(kernel_locate.ENVIRONMENT_VARIABLE, str(chosen))
    assert status_of("build-native", "--only", "kernels") == 0
    assert f"not used as long as there is {chosen}, which comes first" in capsys.readouterr().out


def test_the_status_tells_what_is_used_and_what_there_is(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert status_of("build-native", "--status") == 0
    text = capsys.readouterr().out
    assert "In use: ggml 0.20.2 (wheel)" in text
    assert "There are no kernels of PowerServe's own" in text
    status_of("build-native")
    old = kernel_build.kernel_builds()[0].folder.rename(cache / "kernels" / "0000-x-0000-0000")
    status_of("build-native", "--only", "kernels")
    capsys.readouterr()
    assert status_of("build-native", "--status") == 0
    text = capsys.readouterr().out
    assert "In use: ggml 0.20.2 (native)" in text
    assert f"In use: the kernels {kernel_locate.kernel_library()}" in text
    compiler = tmp_path / "c++"
    assert f"{old} with {compiler} 1.0, for another machine or version\n" in text
    assert text.count("Built here: kernels") == 2


def test_cleaning_deletes_what_is_named(capsys: Capture) -> None:
    status_of("build-native")
    capsys.readouterr()
    assert status_of("build-native", "--clean", "--only", "kernels") == 0
    assert capsys.readouterr().out == "Deleted 1 build of the kernels.\n"
    assert kernel_locate.kernel_library() is None and locate.native_folder() is not None
    assert status_of("build-native", "--clean") == 0
    assert capsys.readouterr().out.splitlines() == [
        "Deleted 1 build of ggml.",
        "Deleted 0 builds of the kernels.",
    ]


def test_stopping_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    compiler = fake_compiler(tmp_path / "slow-c++", f'touch "{started}"; sleep 1; exit 1')
    process = subprocess.Popen(
        [*PROGRAM, "build-native", "--only", "kernels"],
        env=os.environ | {"CXX": str(compiler)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped building the kernels; nothing was installed." in errors
    assert [entry.name for entry in (cache / "kernels").iterdir()] == ["build.lock"]
