"""The kernels, compiled from their source once for all tests of this folder."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from powerserve.backend.ggml.kernels.library import KernelLibrary

SOURCE = Path(__file__).parents[4] / "native" / "kernels"
FLAGS = ["-std=c++20", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"]


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """The library, made by this machine's compiler."""
    target = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run(["g++", *FLAGS, *map(str, SOURCE.glob("*.cpp")), "-o", str(target)], check=True)
    return KernelLibrary(target)
