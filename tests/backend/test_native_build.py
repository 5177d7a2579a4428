"""Native builds: what they are made from, how they replace each other, and how failures read.

Nothing is compiled here: pip is replaced by a command that copies a folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from powerserve.backend.ggml import build_process, locate, native_build
from powerserve.backend.ggml.build_cache import remove_builds
from powerserve.backend.ggml.build_process import BuildStep
from powerserve.core.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, and no library chosen by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "ggml"


@pytest.fixture
def package_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Replaces pip by Python code, which finds the wheel's libraries in `wheel` and its target
    folder in `package`."""

    def replace(code: str) -> None:
        def command(package: Path) -> list[str]:
            head = f"wheel, package = {str(locate.wheel_folder())!r}, {str(package)!r}\n"
            return [sys.executable, "-u", "-c", head + code]

        monkeypatch.setattr(native_build, "install_command", command)

    return replace


COPY_WHEEL = """
import shutil
print("  [1/2] Building C object ggml/src/CMakeFiles/ggml-base.dir/ggml.c.o")
shutil.copytree(wheel, package + "/libggml/lib")
"""


def build(*, force: bool = False, steps: list[BuildStep] | None = None) -> Path:
    """Build, collecting the steps."""
    report = (steps if steps is not None else []).append
    return native_build.build(report, waiting=lambda: None, force=force)


# ---- the recipe --------------------------------------------------------------------------------


def test_compiler_options_and_flags_make_different_builds(tmp_path: Path) -> None:
    environments = [
        {"PATH": add_compiler(tmp_path / "one", "c++ 1.0")},
        {"PATH": add_compiler(tmp_path / "two", "c++ 2.0")},
        {"PATH": str(tmp_path / "one"), "CMAKE_ARGS": "-DGGML_LTO=ON"},
        {"PATH": str(tmp_path / "one"), "CXXFLAGS": "-O2"},
    ]
    names = {native_build.recipe_for(environment).folder_name for environment in environments}
    assert len(names) == len(environments)
    assert all(name.startswith(f"{locate.machine_key()}-") for name in names)


def test_the_users_cmake_arguments_come_after_ours(tmp_path: Path) -> None:
    environment = {"PATH": add_compiler(tmp_path, "c++"), "CMAKE_ARGS": "-DGGML_LTO=ON '-DX=a b'"}
    recipe = native_build.recipe_for(environment)
    built_with = native_build.build_environment(environment, recipe, tmp_path)["CMAKE_ARGS"]
    assert shlex.split(built_with) == [*native_build.CMAKE_OPTIONS, "-DGGML_LTO=ON", "-DX=a b"]


def test_builds_go_around_a_compiler_bug_and_slow_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"PATH": add_compiler(tmp_path, "c++"), "CXXFLAGS": "-O2"}
    amx_expected = "-O2 -fno-dse -fno-tree-dse"
    for flags, expected in (
        ({"avx2"}, "-O2"),
        ({"avx2", "amx_tile"}, amx_expected),
        ({"avx2", "avx512_fp16"}, "-O2 -mno-avx512fp16"),
    ):
        monkeypatch.setattr(native_build.machine, "cpu_flags", lambda flags=flags: flags)
        recipe = native_build.recipe_for(environment)
        assert native_build.build_environment({}, recipe, tmp_path)["CXXFLAGS"] == expected


def test_a_missing_compiler_is_named_with_a_command(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"no C\+\+ compiler .* get one with: "):
        native_build.recipe_for({"PATH": str(tmp_path)})
    with pytest.raises(BackendError, match=r"no C\+\+ compiler \(my-c\+\+\)"):
        native_build.recipe_for({"PATH": os.environ["PATH"], "CXX": "my-c++ -m64"})


def test_neither_pip_nor_uv_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_build.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(native_build.shutil, "which", lambda name: None)
    with pytest.raises(BackendError, match="needs pip or uv"):
        native_build.install_command(tmp_path)


def add_compiler(folder: Path, version: str) -> str:
    """Put a compiler that only knows its version into `folder`; returns the folder for PATH."""
    folder.mkdir(exist_ok=True)
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\necho '{version}'\n")
    compiler.chmod(0o755)
    return str(folder)


# ---- building ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler on PATH, whether or not this machine has one."""
    folder = add_compiler(tmp_path / "compiler", "c++ 1.0")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_build_is_tried_recorded_and_used(
    cache: Path, package_builds: Callable[[str], None]
) -> None:
    package_builds(COPY_WHEEL)
    steps: list[BuildStep] = []
    folder = build(steps=steps)
    assert folder == locate.library_folder()
    assert folder.parent == cache
    assert steps == [BuildStep("compiling ggml.c", 0.5)]
    (record,) = native_build.native_builds()
    assert locate.PACKAGE_VERSION.startswith(record.version)
    assert record.features == locate.describe_library(folder).features
    assert not (folder / "scratch").exists()


def test_a_finished_build_is_kept_unless_forced(
    cache: Path, package_builds: Callable[[str], None]
) -> None:
    package_builds(COPY_WHEEL)
    folder = build()
    package_builds("raise SystemExit('built again')")
    assert build() == folder
    with pytest.raises(BackendError, match="built again"):
        build(force=True)
    assert locate.library_folder() == folder  # the earlier one is still there


def test_a_compile_error_is_quoted_and_nothing_installed(
    cache: Path, package_builds: Callable[[str], None]
) -> None:
    package_builds("print('ok'); print('ggml.c:1: error: no such thing'); print('x'); exit(1)")
    with pytest.raises(BackendError, match=r"failed: ggml.c:1: error: no such thing .*build\.log"):
        build()
    assert sorted(entry.name for entry in cache.iterdir()) == ["build.lock", "build.log"]


def test_a_build_that_does_not_work_is_not_installed(
    cache: Path, package_builds: Callable[[str], None]
) -> None:
    package_builds(
        COPY_WHEEL + "import pathlib\n"
        "for path in pathlib.Path(package).rglob('*ggml-cpu*'): path.write_bytes(b'junk')"
    )
    with pytest.raises(BackendError, match="do not work here"):
        build()
    assert locate.native_folder() is None


def test_leftovers_of_a_killed_build_go_with_the_next(
    cache: Path, package_builds: Callable[[str], None]
) -> None:
    leftover = cache / f".{locate.machine_key()}-aaaa.12345678.partial"
    leftover.mkdir(parents=True)
    package_builds(COPY_WHEEL)
    build()
    assert not leftover.exists()


def test_two_builds_at_once_make_one(package_builds: Callable[[str], None], tmp_path: Path) -> None:
    package_builds(
        COPY_WHEEL + f"import time; open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
        "time.sleep(0.3)"
    )
    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "runs").read_text() == "x"


def test_cleaning_removes_builds(package_builds: Callable[[str], None], cache: Path) -> None:
    assert remove_builds(cache) == 0
    package_builds(COPY_WHEEL)
    build()
    assert remove_builds(cache) == 1
    assert locate.library_folder() == locate.wheel_folder()


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_stops_its_compilers(
    cache: Path, tmp_path: Path, number: signal.Signals
) -> None:
    compiler_pid = tmp_path / "pid"
    program = f"""
import sys
from powerserve.backend.ggml import native_build
from powerserve.cli import main
native_build.install_command = lambda package: [
    "sh", "-c", "sh -c 'echo $$ > {compiler_pid}.new; mv {compiler_pid}.new {compiler_pid};"
    " exec sleep 60' & wait"
]
sys.exit(main.main(["build-native"]))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    wait_until(compiler_pid.exists)
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "nothing was installed" in errors
    wait_until(lambda: not runs(int(compiler_pid.read_text())))
    assert sorted(entry.name for entry in cache.iterdir()) == ["build.lock", "build.log"]


def runs(pid: int) -> bool:
    """Whether a process lives; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll for up to 20 s."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ---- following the output ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("  [8/32] Building C object a/b.dir/ggml.c.o\n", BuildStep("compiling ggml.c", 0.25)),
        ("  [ 50%] Building CXX object a/vec.cpp.o\n", BuildStep("compiling vec.cpp", 0.5)),
        ("[32/32] Linking C library a.so\n", BuildStep("Linking C library a.so", 1.0)),
        ("Collecting libggml-python==1\n", BuildStep("Collecting libggml-python==1")),
        ("  -- Configuring done\n", None),
    ],
)
def test_steps_in_the_output(line: str, step: BuildStep | None) -> None:
    assert build_process.parse_step(line) == step
