"""The real bundle for phones, built into the user's cache once."""

from __future__ import annotations

import functools
import os
import shutil
from pathlib import Path

import pytest

from powerserve.core.errors import PowerServeError
from powerserve.deploy.bundle.build import build_bundle
from powerserve.deploy.bundle.debian import KEYRING
from powerserve.deploy.bundle.target import DEFAULT_TARGET
from powerserve.deploy.bundle.toolchain import GCC_PREFIX

USER_CACHE = os.environ.get("XDG_CACHE_HOME")  # before any test changes it


@functools.cache
def real_bundle() -> Path:
    """The archive `powerserve deploy build` makes; the first time it takes minutes."""
    require_build_tools()
    with pytest.MonkeyPatch.context() as patch:
        if USER_CACHE is None:
            patch.delenv("XDG_CACHE_HOME", raising=False)
        else:
            patch.setenv("XDG_CACHE_HOME", USER_CACHE)
        try:
            return build_bundle(DEFAULT_TARGET)
        except PowerServeError as error:
            if "fetched" in str(error):
                pytest.skip(str(error))
            raise


def require_build_tools() -> None:
    """Skip the test where bundles cannot be built."""
    for tool in (f"{GCC_PREFIX}g++", "apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is missing")
    if not KEYRING.exists():
        pytest.skip("Debian's keys are missing (apt-get install debian-archive-keyring)")
