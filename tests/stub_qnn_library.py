"""The stand-in for Qualcomm's libraries (tests/backend/qnn/stub_qnn.cpp), compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from powerserve.backend.compiler import find_compiler
from powerserve.backend.qnn.libraries import BACKEND_LIBRARY, SYSTEM_LIBRARY, QnnLibraries
from powerserve.backend.qnn.runtime.base import GraphRequest
from powerserve.backend.qnn.tensors import F32, GraphSpec, TensorSpec
from powerserve.core.errors import BackendError

RPC_LIBRARY = "libcdsprpc.so"
SOURCE = Path(__file__).parent / "backend" / "qnn" / "stub_qnn.cpp"
BINARY_SOC = 69  # what the stub says of any binary
REQUEST = GraphRequest(
    "double", GraphSpec((TensorSpec("x", F32, (2, 4)),), (TensorSpec("y", F32, (2, 4)),))
)


def compiler_or_skip() -> str:
    """The C++ compiler of this machine."""
    try:
        return find_compiler(os.environ)
    except BackendError as error:
        pytest.skip(f"the NPU helper must be compiled: {error}")


def build_stub(folder: Path, compiler: str, *, rpc_memory: bool) -> QnnLibraries:
    """Compile the stub as all libraries in the new folder `folder`."""
    folder.mkdir()
    library = folder / BACKEND_LIBRARY
    command = [compiler, "-std=c++17", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
    subprocess.run(command, check=True, timeout=120)
    for name in (SYSTEM_LIBRARY, *([RPC_LIBRARY] if rpc_memory else [])):
        shutil.copy(library, folder / name)
    return QnnLibraries(folder)
