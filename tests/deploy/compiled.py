"""Libraries for ARM that hold no code, and stand-ins for what compiles real ones."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from powerserve.backend.ggml import native_build
from powerserve.deploy.bundle import cross_ggml
from powerserve.deploy.bundle.toolchain import GCC_PREFIX

NDK_TOOLCHAIN = "build/cmake/android.toolchain.cmake"
_NDK_LLVM = "toolchains/llvm/prebuilt/linux-x86_64"
_NDK_COMPILER = f"{_NDK_LLVM}/bin/aarch64-linux-android30-clang++"
_NDK_LIBRARIES = f"{_NDK_LLVM}/sysroot/usr/lib/aarch64-linux-android"
PAGE_BYTES = 16384

_COPY = """
import os, pathlib, shutil
assert pathlib.Path(source, "CMakeLists.txt").exists()
lib = pathlib.Path(package, "libggml/lib")
shutil.copytree(made, lib)
for name in ("CMAKE_ARGS", "CFLAGS", "CC"):
    (made.parent / name).write_text(os.environ.get(name, ""))
print("[1/1] Building CXX object ggml.cpp.o")
"""


def compile_library(path: Path, *, page_bytes: int = PAGE_BYTES, needs: Path | None = None) -> Path:
    """A shared library for ARM without any code."""
    compiler = shutil.which(f"{GCC_PREFIX}g++")
    if compiler is None:
        pytest.skip(f"{GCC_PREFIX}g++ is missing")
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-nostdlib", "-x", "c++", "/dev/null", "-x", "none"]
    command += ["-Wl,--no-as-needed", *([str(needs)] if needs else [])]
    command += [f"-Wl,-z,max-page-size={page_bytes}", f"-Wl,-soname,{path.name}", "-o", str(path)]
    subprocess.run(command, check=True)
    return path


def replace_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let pip "compile" ggml by copying the folder that is returned, which has all libraries.

    What its environment told it is then in files of `folder` named like the variables.
    """
    made = folder / "made"
    for name in cross_ggml.LIBRARY_FILES:
        compile_library(made / name)
    (made / "libggml.so.0").write_text("a second name for the same")
    source_package = _source_package(folder)
    monkeypatch.setattr(cross_ggml, "fetch_ggml_source", lambda progress: source_package)

    def command(package: Path, source: Path | None) -> list[str]:
        head = f"import pathlib; made = pathlib.Path({str(made)!r})\n"
        head += f"package, source = {str(package)!r}, {str(source)!r}\n"
        return [sys.executable, "-c", head + _COPY]

    monkeypatch.setattr(native_build, "install_command", command)
    return made


def make_ndk(folder: Path, revision: str = "27.1.5") -> Path:
    """A folder that looks like an NDK, whose compiler makes libraries without code."""
    ndk = folder / "ndk"
    for file in (NDK_TOOLCHAIN, _NDK_COMPILER):
        (ndk / file).parent.mkdir(parents=True, exist_ok=True)
        (ndk / file).touch()
    (ndk / "source.properties").write_text(f"Pkg.Desc = Android NDK\nPkg.Revision = {revision}\n")
    library = compile_library(ndk / _NDK_LIBRARIES / "libc++_shared.so")
    script = f'while [ "$1" != -o ]; do shift; done\ncp "{library}" "$2"\n'
    (ndk / _NDK_COMPILER).write_text(f"#!/bin/sh\n{script}")
    (ndk / _NDK_COMPILER).chmod(0o755)
    return ndk


def _source_package(folder: Path) -> Path:
    """An archive with nothing to compile."""
    path = folder / "source.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        file.addfile(tarfile.TarInfo("libggml_python-1/CMakeLists.txt"), io.BytesIO())
    return path
