"""Compiling the kernels: made once, tried, and whole or not there at all.

The compiler is a script that copies the library which all tests of this folder share.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_compiler import fake_compiler
from powerserve.backend.compiler import find_compiler
from powerserve.backend.ggml import locate as ggml_locate
from powerserve.backend.ggml.build_process import BuildStep
from powerserve.backend.ggml.kernels import build, locate
from powerserve.backend.ggml.kernels.check_attention import check_attention
from powerserve.backend.ggml.kernels.check_products import check_products
from powerserve.backend.ggml.kernels.check_storing import check_storing
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.backend.ggml.library import Tensor
from powerserve.core.errors import BackendError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test, and nothing chosen by the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ggml_locate.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.delenv(locate.ENVIRONMENT_VARIABLE, raising=False)
    return tmp_path / "cache" / "powerserve" / "kernels"


@pytest.fixture
def compiler(tmp_path: Path, kernel_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler whose every output is the whole library; it writes down what it is asked for."""
    path = tmp_path / "c++"
    monkeypatch.setenv("CXX", str(path))
    return fake_compiler(path, f'cp "{kernel_file}" "$out"; echo "$out" >> "{tmp_path}/calls"')


def make(*, force: bool = False, steps: list[BuildStep] | None = None) -> Path:
    """Build, collecting the steps."""
    report = (steps if steps is not None else []).append
    return build.build(report, waiting=lambda: None, force=force)


# ---- building ----------------------------------------------------------------------------------


def test_a_build_is_recorded_and_used(compiler: Path, kernels: KernelLibrary) -> None:
    steps: list[BuildStep] = []
    library = make(steps=steps)
    assert library == locate.kernel_library()
    (record,) = build.kernel_builds()
    assert record.folder == library.parent
    assert record.instruction_sets == tuple(kernels.instruction_sets)
    assert record.compiler == f"{compiler} 1.0"
    assert sorted(entry.name for entry in library.parent.iterdir()) == [
        ggml_locate.RECORD,
        library.name,
    ]


def test_every_file_is_compiled_and_reported(compiler: Path, tmp_path: Path) -> None:
    steps: list[BuildStep] = []
    make(steps=steps)
    source = locate.kernel_source()
    assert source is not None
    names = {path.name for path in source.glob("*.cpp")}
    assert {step.text for step in steps} == {"linking", *(f"compiled {name}" for name in names)}
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions, key=float) and fractions[-1] == 1
    calls = [Path(line).name for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls.pop() == locate.library_name()
    assert sorted(calls) == sorted(f"{Path(name).stem}.o" for name in names)


def test_a_build_is_kept_unless_forced(compiler: Path, tmp_path: Path) -> None:
    library = make()
    (tmp_path / "calls").unlink()
    assert make() == library
    assert not (tmp_path / "calls").exists()
    assert make(force=True) == library
    assert (tmp_path / "calls").exists()


def test_another_compiler_makes_another_build(
    compiler: Path, kernel_file: Path, cache: Path
) -> None:
    first = make()
    fake_compiler(compiler, f'cp "{kernel_file}" "$out"', version="2.0")
    second = make()
    assert first != second and len(build.kernel_builds()) == 2
    assert locate.kernel_library() == second


def test_a_compile_error_is_quoted_and_nothing_installed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = "echo noise; echo 'pack.cpp:1:1: error: no such thing' >&2; exit 1"
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "c++", command)))
    with pytest.raises(BackendError, match=r"kernels cannot be compiled: pack.cpp:1:1: error: no"):
        make()
    assert [entry.name for entry in cache.iterdir()] == ["build.lock"]


def test_what_does_not_work_is_not_installed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path / "c++", 'echo junk > "$out"')))
    with pytest.raises(BackendError, match=r"the kernels .* do not work here: .*be loaded"):
        make()
    assert locate.kernel_library() is None
    assert [entry.name for entry in cache.iterdir()] == ["build.lock"]


def test_a_missing_source_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "native_source", lambda name: None)
    with pytest.raises(BackendError, match="this installation lacks the kernels' source"):
        make()


def test_cmake_compiles_as_we_do() -> None:
    source = locate.kernel_source()
    assert source is not None
    text = (source / "CMakeLists.txt").read_text()
    # Of the others, -std, -fPIC, -O3 and -fvisibility have properties of their own in CMake.
    assert " ".join(build.COMPILER_FLAGS[-2:]) in text
    for words in ("cxx_std_20", "CMAKE_BUILD_TYPE Release", "VISIBILITY_PRESET hidden", "SHARED"):
        assert words in text


# ---- the trial ---------------------------------------------------------------------------------


def test_sound_kernels_pass_the_trial(kernel_file: Path, kernels: KernelLibrary) -> None:
    found = locate.describe_kernels(kernel_file, check=True)
    assert found == tuple(kernels.instruction_sets)


@pytest.fixture
def library(kernel_file: Path) -> Iterator[KernelLibrary]:
    """An object of its own, whose functions can be replaced."""
    library = KernelLibrary(kernel_file)
    yield library
    library.use(library.instruction_sets[0])  # for others, who share what is loaded


TRIALS = {
    "pack": check_products,
    "op_prepare": check_products,
    "op_linear": check_products,
    "op_store": check_storing,
    "op_attention": check_attention,
}


@pytest.mark.parametrize("operation", TRIALS)
def test_wrong_numbers_fail_the_trial(library: KernelLibrary, operation: str) -> None:
    """As if one bit in each thousand bytes that a function writes were another."""
    function = getattr(library, operation)

    def damaged(*arguments: Any) -> None:
        function(*arguments)
        if operation == "pack":
            address, size = arguments[4], library.packed_bytes(*arguments[:3])
        else:
            target = Tensor.from_address(arguments[0])
            address, size = target.data, target.ne[0] * target.ne[1] * target.nb[0]
        for offset in range(3, size, 1000):
            byte = ctypes.c_uint8.from_address(address + offset)
            byte.value ^= 0x40

    setattr(library, operation, damaged)
    with pytest.raises(BackendError, match=r" of \d+ tokens with \S+ are off by"):
        TRIALS[operation](library)


def test_a_crash_fails_the_trial(tmp_path: Path, kernel_file: Path) -> None:
    source, library = tmp_path / "crash.cpp", tmp_path / "crash.so"
    source.write_text('extern "C" int psk_abi() { __builtin_trap(); }')
    compiler = find_compiler(os.environ)
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", library], check=True)
    with pytest.raises(BackendError, match=re.escape(f"{library} do not work here: ended by sig")):
        locate.describe_kernels(library, check=True)
