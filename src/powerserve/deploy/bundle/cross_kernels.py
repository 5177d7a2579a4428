"""Our own kernels (native/kernels) compiled for 64-bit ARM: one library for all processors.

It has kernels for each generation and chooses when it is loaded, so one file serves all builds of
ggml.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from powerserve.backend.ggml.build_cache import remove_leftovers
from powerserve.backend.ggml.kernels.build import COMPILER_FLAGS, LINKER_FLAGS, compile_kernels
from powerserve.backend.ggml.kernels.locate import LIBRARY, kernel_source
from powerserve.core.errors import BundleError
from powerserve.deploy.bundle.build_progress import percent
from powerserve.deploy.bundle.cross_ggml import accept_libraries
from powerserve.deploy.bundle.target import ANDROID_PAGE_BYTES
from powerserve.deploy.bundle.toolchain import Toolchain
from powerserve.storage import atomic
from powerserve.storage.cache_folder import cache_folder
from powerserve.storage.lock import exclusive_lock
from powerserve.storage.progress import Progress

KERNELS = f"lib{LIBRARY}.so"
_LINKER_FLAGS = (*LINKER_FLAGS, "-s", f"-Wl,-z,max-page-size={ANDROID_PAGE_BYTES}")


def build_kernels(toolchain: Toolchain, progress: Progress) -> Path:
    """The library for the device, compiled unless it is in the cache.

    Raises:
        BundleError: the installation lacks the source, or the device could not load the result.
        BackendError: it does not compile.
    """
    source = _source()
    root = cache_folder() / "deploy" / "kernels"
    root.mkdir(parents=True, exist_ok=True)
    target = root / kernels_digest(toolchain)[:12]
    with exclusive_lock(root / "lock", waiting=lambda: progress.note("waiting for another build")):
        remove_leftovers(root)
        if not target.exists():
            with atomic.new_folder(target) as folder:
                with percent(progress, "compiling the kernels") as report:
                    library = folder / KERNELS
                    compile_kernels(toolchain.compiler, source, library, report, _LINKER_FLAGS)
                accept_libraries(folder, toolchain)
    return target / KERNELS


def kernels_digest(toolchain: Toolchain) -> str:
    """A digest of all that decides what is built. Raises BundleError: there is no source."""
    recipe = (toolchain.description, COMPILER_FLAGS, _LINKER_FLAGS)
    digest = hashlib.sha256(repr(recipe).encode())
    for path in sorted(path for path in _source().iterdir() if path.suffix in (".cpp", ".h")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _source() -> Path:
    source = kernel_source()
    if source is None:
        raise BundleError("this installation lacks the kernels' source")
    return source
