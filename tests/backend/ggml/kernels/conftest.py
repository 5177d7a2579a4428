"""The kernels, compiled from their source once for all tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from powerserve.backend.compiler import find_compiler
from powerserve.backend.ggml.kernels import locate
from powerserve.backend.ggml.kernels.build import compile_kernels
from powerserve.backend.ggml.kernels.library import KernelLibrary
from powerserve.core.errors import BackendError


@pytest.fixture(scope="session")
def kernel_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library's file, made by this machine's compiler."""
    source, file = locate.kernel_source(), tmp_path_factory.mktemp("kernels") / "kernels.so"
    assert source is not None
    try:
        compiler = find_compiler(os.environ)
    except BackendError as error:
        pytest.skip(str(error))
    compile_kernels(compiler, source, file, report=lambda step: None)
    return file


@pytest.fixture(scope="session")
def kernels(kernel_file: Path) -> KernelLibrary:
    """The library, loaded."""
    return KernelLibrary(kernel_file)
