"""The hint that a library compiled on this machine would be faster, given once."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from powerserve.backend.base import Backend
from powerserve.backend.ggml import locate, native_build
from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.ggml.cpu import unused_features
from powerserve.backend.ggml.kernels.choice import KernelChoice
from powerserve.cli.statistics import info
from powerserve.core.errors import BackendError

OFFER = (
    "{reasons}; `powerserve build-native` compiles for this machine, in a few minutes "
    "(`--only kernels` in seconds, for most of the gain)"
)


def offer_native_build(backend: Backend) -> None:
    """Print the offer to standard error if a build is possible and would help, once a machine."""
    if not isinstance(backend, GgmlBackend) or _marker().exists():
        return
    reasons = list(_reasons(backend))
    if reasons and _has_compiler() and _mark():
        info(OFFER.format(reasons=", and ".join(reasons)), sys.stderr)


def _reasons(backend: GgmlBackend) -> Iterator[str]:
    """What speaks for building; nothing where users chose their libraries themselves."""
    if os.environ.get(locate.ENVIRONMENT_VARIABLE):
        return
    is_prebuilt = locate.origin_of(backend.library.folder) == "wheel"
    if is_prebuilt and (features := unused_features(backend.library.features())):
        yield f"this CPU can do more than the prebuilt library uses ({', '.join(features)})"
    if backend.kernels is None and backend.options.kernels is not KernelChoice.GGML:
        yield "PowerServe's own kernels are not compiled yet"


def _has_compiler() -> bool:
    try:
        native_build.compiler_in(os.environ)
    except BackendError:
        return False
    return True


def _marker() -> Path:
    # Named after the machine, because home folders are shared between machines.
    return locate.native_root().parent / f"native-build-offered-{locate.machine_key()}"


def _mark() -> bool:
    """Remember the offer; where that is impossible it is not made, or it would come every time."""
    try:
        _marker().parent.mkdir(parents=True, exist_ok=True)
        _marker().touch()
    except OSError:
        return False
    return True
