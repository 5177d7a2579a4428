"""What `powerserve doctor` finds out about this machine, and what it makes of that.

ggml is looked at in child processes only: two copies of it must never meet in one process.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from powerserve import __version__
from powerserve.backend.compiler import compiler_advice
from powerserve.backend.ggml import locate, native_build
from powerserve.backend.ggml.cpu import available_features, unused_features
from powerserve.backend.ggml.kernels.locate import (
    built_library,
    describe_kernels,
    kernel_library,
)
from powerserve.core import machine
from powerserve.core.errors import BackendError, StoreError
from powerserve.storage.store import ModelStore

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
BUILD_KERNELS = "powerserve build-native --only kernels"
REQUIRED = ("jinja2", "msgspec", "numpy", "rich")
OPTIONAL = {
    "huggingface_hub": "needed to pull models",
    "tokenizers": "long prompts are tokenized faster",
    "gguf": "needed to convert models",
    "onnx": "needed to convert models for an NPU",
    "onnxruntime": "needed for an NPU",
}


@dataclass(frozen=True, slots=True)
class Library:
    """The ggml library that would be used; `error` says why it cannot be."""

    folder: str | None = None
    origin: str | None = None  # "wheel", "native" or "environment"
    version: str | None = None
    features: tuple[str, ...] = ()
    unused_features: tuple[str, ...] = ()  # what the CPU has beyond them
    native_build: str | None = None  # the folder of this machine's own build
    error: str | None = None


@dataclass(frozen=True, slots=True)
class OwnKernels:
    """PowerServe's own kernels, if they are there; `error` says why they cannot be used."""

    path: str | None = None
    instruction_sets: tuple[str, ...] = ()  # for this CPU, best first
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Threads:
    """What limits the number of threads, and the outcome."""

    physical_cores: int
    allowed_cpus: int
    cpu_quota: float | None
    used: int
    load_average: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, None where the system does not say."""

    total_bytes: int | None
    available_bytes: int | None
    huge_pages: str | None  # "always", "madvise" or "never"


@dataclass(frozen=True, slots=True)
class Store:
    """The model store; `error` says why it cannot be read."""

    folder: str
    writable: bool
    models: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()  # models whose files were deleted
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `powerserve doctor` prints."""

    powerserve: str
    python: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]  # in ggml's names; empty where the system lists none
    library: Library
    kernels: OwnKernels
    threads: Threads
    memory: Memory
    store: Store
    packages: dict[str, str | None]  # name -> version, None if it is not installed
    problems: tuple[str, ...] = field(default=())
    advice: tuple[str, ...] = field(default=())


def diagnose() -> Diagnosis:
    """Look at everything."""
    library, store, memory, threads = _library(), _store(), _memory(), _threads()
    kernels = _kernels(library)
    packages = {name: _version(name) for name in (*REQUIRED, *OPTIONAL)}
    return Diagnosis(
        powerserve=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        cpu=machine.cpu_name(),
        cpu_features=tuple(available_features()),
        library=library,
        kernels=kernels,
        threads=threads,
        memory=memory,
        store=store,
        packages=packages,
        problems=tuple(_problems(library, store, packages)),
        advice=tuple(_advice(library, kernels, threads, memory, store, packages)),
    )


def _library() -> Library:
    native = locate.native_folder()
    native_text = str(native) if native else None
    folder = None
    try:
        folder = locate.library_folder()
        info = locate.describe_library(folder)
    except BackendError as error:
        cure = "; `powerserve build-native --force` makes it anew" if folder == native else ""
        return Library(native_build=native_text, error=f"{error}{cure if folder else ''}")
    return Library(
        folder=str(info.folder),
        origin=info.origin,
        version=info.version,
        features=info.features,
        unused_features=tuple(unused_features(info.features)),
        native_build=native_text,
    )


def _kernels(library: Library) -> OwnKernels:
    if library.folder is None:
        return OwnKernels(error="there is no ggml to use them with")
    path = None
    try:
        path = kernel_library(Path(library.folder))
        names = describe_kernels(path, check=True) if path else ()
    except BackendError as error:
        cure = f"; `{BUILD_KERNELS} --force` makes them anew" if path == built_library() else ""
        return OwnKernels(error=f"{error}{cure if path else ''}")
    return OwnKernels(str(path) if path else None, names)


def _threads() -> Threads:
    return Threads(
        physical_cores=machine.physical_cores(),
        allowed_cpus=machine.allowed_cpus(),
        cpu_quota=machine.cgroup_cpu_quota(),
        used=machine.default_threads(),
        load_average=machine.load_average(),
    )


def _memory() -> Memory:
    return Memory(machine.total_memory(), machine.available_memory(), huge_pages(HUGE_PAGES))


def huge_pages(setting: Path) -> str | None:
    """The chosen one of the words in the kernel's file, which marks it with brackets."""
    try:
        words = setting.read_text().split()
    except OSError:
        return None
    return next((word.strip("[]") for word in words if word.startswith("[")), None)


def _store() -> Store:
    store = ModelStore()
    writable = _can_write(store.folder)
    try:
        entries = store.entries()
    except StoreError as error:
        return Store(str(store.folder), writable, error=str(error))
    return Store(
        str(store.folder),
        writable,
        models=tuple(entry.name for entry in entries),
        missing=tuple(entry.name for entry in entries if entry.missing_files),
    )


def _can_write(folder: Path) -> bool:
    """Whether files could be made in `folder`, or the folder itself if it does not exist yet."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _problems(library: Library, store: Store, packages: dict[str, str | None]) -> Iterator[str]:
    """What must be put right before anything works."""
    if library.error:
        yield library.error
    if store.error:
        yield store.error
    elif not store.writable and len(store.models) == len(store.missing):
        yield f"{store.folder} cannot be written, so no model can be fetched; set POWERSERVE_HOME"
    if missing := [name for name in REQUIRED if packages[name] is None]:
        yield f"missing packages: {', '.join(missing)}; install powerserve again"


def _advice(
    library: Library,
    kernels: OwnKernels,
    threads: Threads,
    memory: Memory,
    store: Store,
    packages: dict[str, str | None],
) -> Iterator[str]:
    """What would make things better."""
    yield from _library_advice(library)
    if not library.error:
        yield from _kernel_advice(kernels)
    if threads.load_average > threads.allowed_cpus:
        yield (
            f"other programs keep the CPU busy (load {threads.load_average:.1f} on "
            f"{threads.allowed_cpus}): answers come slower than they could"
        )
    if memory.huge_pages == "never":
        yield f"the kernel's huge pages are off: write “madvise” to {HUGE_PAGES}"
    if packages["tokenizers"] is None:
        yield f"pip install tokenizers: {OPTIONAL['tokenizers']}"
    if not store.models:
        yield "there is no model yet: `powerserve run` fetches a small one at its first use"
    for name in store.missing:
        yield f"the files of the model {name} are gone: `powerserve rm {name}` forgets it"


def _library_advice(library: Library) -> Iterator[str]:
    if library.error or (library.origin == "native" and not library.unused_features):
        return
    if library.native_build and library.origin != "native":
        yield (
            f"{locate.ENVIRONMENT_VARIABLE} is set, so this machine's own build is not used: "
            "unset it"
        )
    elif library.unused_features and not library.native_build:
        yield (
            f"the CPU has {', '.join(library.unused_features)}, which the library does not use: "
            f"{_how_to_build()}{_expected_gain(library.unused_features)}"
        )


def _kernel_advice(kernels: OwnKernels) -> Iterator[str]:
    if kernels.error:
        yield f"PowerServe's own kernels are not used: {kernels.error}"
    elif kernels.path is None:
        yield f"PowerServe's own kernels are not here: `{BUILD_KERNELS}` compiles them in seconds"


def _expected_gain(features: Collection[str]) -> str:
    """What such features brought where it was measured (docs/performance.md)."""
    if "amx_int8" in features:
        return "; with AMX, prefill was 2 to 4 times as fast, and decoding 1 to 2.7 times"
    return ""  # unknown: `doctor --measure` tells


def _how_to_build() -> str:
    build = "`powerserve build-native` makes one that does"
    try:
        native_build.compiler_in(os.environ)
    except BackendError:
        return f"get a C++ compiler ({compiler_advice()}), then {build}"
    return f"{build}, and `powerserve doctor --measure` compares the two"
