"""The helper's executable: one that was made elsewhere, or compiled here when it is first needed.

It is one C++ file without dependencies, so the compiler is called directly; for other systems
there is native/npu_helper/CMakeLists.txt.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
from pathlib import Path

from powerserve.backend.compiler import compiler_version, find_compiler, run_compiler
from powerserve.backend.native_source import native_source
from powerserve.core.errors import BackendError
from powerserve.storage import atomic
from powerserve.storage.cache_folder import cache_folder

HELPER_VARIABLE = "POWERSERVE_NPU_HELPER"
EXECUTABLE = "powerserve-npu-helper"
ANDROID_API = 30
COMPILER_FLAGS = ("-std=c++17", "-O2", "-pthread")
# Nothing is needed beside the C library where it runs; memory pages may be of 16 kB (Android 15).
LINKER_FLAGS = ("-static-libstdc++", "-static-libgcc", "-Wl,-z,max-page-size=16384")
LIBRARIES = ("-ldl",)

logger = logging.getLogger("powerserve.backend")

_SOURCE = "npu_helper.cpp"


def helper_executable() -> Path:
    """The helper that POWERSERVE_NPU_HELPER names, else one that is compiled here once.

    Raises:
        BackendError: it is not there, or cannot be compiled.
    """
    if chosen := os.environ.get(HELPER_VARIABLE):
        if os.access(chosen, os.X_OK):
            return Path(chosen)
        raise BackendError(
            f"{HELPER_VARIABLE} is {chosen}, which is no program; correct or unset it"
        )
    if sys.platform != "linux":
        raise BackendError("the NPU helper runs on Linux and Android only")
    compiler = find_compiler(os.environ)
    target = cache_folder() / "npu-helper" / _build_name(compiler) / EXECUTABLE
    if not target.exists():
        logger.warning("the NPU helper is being compiled; that happens once")
        target.parent.mkdir(parents=True, exist_ok=True)
        compile_helper(compiler, target)
    return target


def helper_source() -> Path:
    """The helper's C++ file; raises BackendError if the installation lacks it."""
    folder = native_source("npu_helper")
    if folder is None or not (folder / _SOURCE).is_file():
        raise BackendError("this installation lacks the NPU helper's source")
    return folder / _SOURCE


def ndk_compiler(ndk: Path) -> str:
    """An Android NDK's compiler for 64-bit ARM; raises BackendError if it is not there."""
    name = f"aarch64-linux-android{ANDROID_API}-clang++"
    for compiler in ndk.glob(f"toolchains/llvm/prebuilt/*/bin/{name}"):
        return str(compiler)
    raise BackendError(f"{ndk} is no Android NDK: it has no {name}")


def compile_helper(compiler: str, target: Path) -> None:
    """Compile the helper with a compiler (its path) into the file `target`.

    Raises:
        BackendError: the compiler does not run, fails or takes too long.
    """
    partial = atomic.partial_path(target)
    flags = (*COMPILER_FLAGS, *LINKER_FLAGS)
    command = [compiler, *flags, str(helper_source()), "-o", str(partial), *LIBRARIES]
    try:
        run_compiler(command, "the NPU helper")
        os.replace(partial, target)
    except OSError as error:
        raise BackendError(f"the NPU helper cannot be compiled: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def _build_name(compiler: str) -> str:
    """What decides the outcome: the source, the compiler and the flags."""
    digest = hashlib.sha256(helper_source().read_bytes())
    digest.update(repr((compiler_version(compiler), COMPILER_FLAGS, LINKER_FLAGS)).encode())
    return f"{platform.machine().lower()}-{digest.hexdigest()[:12]}"
