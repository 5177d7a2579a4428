"""The hint that a library compiled on this machine would be faster, given once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from powerserve.backend.base import Backend
from powerserve.backend.ggml import locate, native_build
from powerserve.backend.ggml.backend import GgmlBackend
from powerserve.backend.ggml.cpu import unused_features
from powerserve.cli.statistics import info
from powerserve.core.errors import BackendError

OFFER = (
    "this CPU can do more than the prebuilt library uses ({features}); "
    "`powerserve build-native` makes one that uses it, in a few minutes"
)


def offer_native_build(backend: Backend) -> None:
    """Print the offer to standard error if a build is possible and would help, once a machine."""
    if not isinstance(backend, GgmlBackend) or _marker().exists() or not _is_prebuilt(backend):
        return
    features = unused_features(backend.library.features())
    if features and _has_compiler() and _mark():
        info(OFFER.format(features=", ".join(features)), sys.stderr)


def _is_prebuilt(backend: GgmlBackend) -> bool:
    chosen_by_user = bool(os.environ.get(locate.ENVIRONMENT_VARIABLE))
    return not chosen_by_user and locate.origin_of(backend.library.folder) == "wheel"


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
