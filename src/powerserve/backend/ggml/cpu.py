"""Whether this CPU can run the loaded library: an unknown instruction would kill the process."""

from __future__ import annotations

from collections.abc import Collection

from powerserve.backend.ggml.library import GgmlLibrary
from powerserve.core.errors import BackendError
from powerserve.core.machine import cpu_flags, cpu_name

# ggml's feature name -> the flag in /proc/cpuinfo
KERNEL_FLAGS = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "avx": "avx",
    "avx2": "avx2",
    "bmi2": "bmi2",
    "f16c": "f16c",
    "fma": "fma",
    "avx_vnni": "avx_vnni",
    "avx512": "avx512f",
    "avx512_vbmi": "avx512vbmi",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_int8": "amx_int8",
    "fp16_va": "asimdhp",
    "dotprod": "asimddp",
    "matmul_int8": "i8mm",
    "sve": "sve",
    "sme": "sme",
}


def check_cpu(library: GgmlLibrary) -> None:
    """Raises BackendError if the library was built with instructions that this CPU lacks."""
    flags = cpu_flags()
    if not flags:
        return  # the system does not list them
    missing = [
        feature
        for feature in library.features()
        if feature in KERNEL_FLAGS and KERNEL_FLAGS[feature] not in flags
    ]
    if missing:
        raise BackendError(
            f"the ggml library in {library.folder} uses {', '.join(missing)}, which this CPU "
            f"({cpu_name()}) lacks; `powerserve build-native` makes one that fits"
        )


def available_features() -> list[str]:
    """The features this CPU has, in ggml's names; empty where the system does not list them."""
    flags = cpu_flags()
    return [feature for feature, flag in KERNEL_FLAGS.items() if flag in flags]


def unused_features(used: Collection[str]) -> list[str]:
    """What this CPU has beyond `used`, the features of a library."""
    return [feature for feature in available_features() if feature not in used]
