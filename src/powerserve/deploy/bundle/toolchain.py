"""Compilers for 64-bit ARM: Debian's cross compiler, and Android's NDK where the user has one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from powerserve.backend.compiler import compiler_version
from powerserve.backend.qnn.runtime.build import ANDROID_API, ndk_compiler
from powerserve.core.errors import BundleError
from powerserve.deploy.bundle.target import ANDROID_PAGE_BYTES, Target

GCC_PREFIX = "aarch64-linux-gnu-"
SMALLEST_PAGE_BYTES = 4096
# What every Android has. Source: the NDK's documentation of its native APIs.
ANDROID_LIBRARIES = frozenset({"libc.so", "libm.so", "libdl.so", "liblog.so"})
_NDK_TOOLCHAIN = "build/cmake/android.toolchain.cmake"
_NDK_CXX_LIBRARY = (
    "toolchains/llvm/prebuilt/*/sysroot/usr/lib/aarch64-linux-android/libc++_shared.so"
)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A compiler for the device, as cmake is told of it."""

    description: str  # which one, exactly
    compiler: str  # the path of the one for C++
    cmake_options: tuple[str, ...]
    min_alignment: int  # bytes: the pages that what it builds must fit
    system_libraries: frozenset[str] = frozenset()  # what every such device has
    runtime_library: Path | None = None  # to be put beside what it builds


def toolchain_for(target: Target, ndk: Path | None) -> Toolchain:
    """The compiler for `target`.

    Raises:
        BundleError: it is not here, or `ndk` is no NDK.
        BackendError: the NDK is not a whole one.
    """
    if not target.needs_ndk:
        return _gcc()
    if ndk is None:
        raise BundleError(
            f"{target.name} is compiled by Android's NDK; unpack one and name its folder: --ndk DIR"
        )
    return _ndk(ndk)


def _gcc() -> Toolchain:
    compiler = shutil.which(f"{GCC_PREFIX}g++")
    if compiler is None:
        raise BundleError(
            f"there is no cross compiler for 64-bit ARM here ({GCC_PREFIX}g++); get one with: "
            "sudo apt-get install -y g++-aarch64-linux-gnu"
        )
    return Toolchain(
        description=compiler_version(compiler).removeprefix(f"{compiler} "),
        compiler=compiler,
        cmake_options=(
            "-DCMAKE_SYSTEM_NAME=Linux",
            "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
            f"-DCMAKE_C_COMPILER={GCC_PREFIX}gcc",
            f"-DCMAKE_CXX_COMPILER={GCC_PREFIX}g++",
        ),
        min_alignment=SMALLEST_PAGE_BYTES,
    )


def _ndk(ndk: Path) -> Toolchain:
    toolchain = ndk.absolute() / _NDK_TOOLCHAIN
    if not toolchain.is_file():
        raise BundleError(
            f"{ndk} is no Android NDK: it has no {_NDK_TOOLCHAIN}; name the folder that an NDK's "
            "archive unpacks to"
        )
    return Toolchain(
        description=f"Android NDK {ndk_revision(ndk)}",
        compiler=ndk_compiler(ndk.absolute()),
        cmake_options=(
            f"-DCMAKE_TOOLCHAIN_FILE={toolchain}",
            "-DANDROID_ABI=arm64-v8a",
            f"-DANDROID_PLATFORM=android-{ANDROID_API}",
            "-DANDROID_STL=c++_shared",  # one C++ runtime for several libraries
            f"-DCMAKE_SHARED_LINKER_FLAGS=-Wl,-z,max-page-size={ANDROID_PAGE_BYTES}",
        ),
        min_alignment=ANDROID_PAGE_BYTES,
        system_libraries=ANDROID_LIBRARIES,
        runtime_library=next(ndk.absolute().glob(_NDK_CXX_LIBRARY), None),
    )


def ndk_revision(ndk: Path) -> str:
    """The NDK's own version, such as "27.2.12479018"."""
    try:
        properties = (ndk / "source.properties").read_text()
    except (OSError, UnicodeDecodeError):
        return "of unknown revision"
    pairs = (line.partition("=") for line in properties.splitlines())
    found = (value.strip() for key, _, value in pairs if key.strip() == "Pkg.Revision")
    return next(found, "of unknown revision")
