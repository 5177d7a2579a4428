"""The wheel that `pip wheel native/kernels` makes, of two functions instead of all sources."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from powerserve import __version__
from powerserve.backend.compiler import find_compiler
from powerserve.backend.ggml.kernels import locate
from powerserve.backend.ggml.kernels.library import ABI
from powerserve.core.errors import BackendError

SOURCE = Path(__file__).parents[4] / "native" / "kernels"
STUB = """
#include "powerserve_kernels.h"
int32_t psk_abi() { return PSK_ABI; }
int hidden() { return 1; }
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the stub."""
    pytest.importorskip("pip", reason="pip makes the wheel")
    try:
        find_compiler(os.environ)
    except BackendError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(SOURCE, folder / "kernels")
    for path in source.glob("*.cpp"):
        path.unlink()
    (source / "stub.cpp").write_text(STUB)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(folder)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if "No matching distribution" in done.stderr:
        pytest.skip("the package index, which has scikit-build-core, is out of reach")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_it_is_for_any_python_on_this_platform(wheel: Path) -> None:
    assert re.fullmatch(
        rf"powerserve_kernels-{re.escape(__version__)}-py3-none-(?!any)\w+\.whl", wheel.name
    )


def test_powerserve_finds_the_library_in_it(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    library = locate.packaged_library()
    assert library == tmp_path / locate.MODULE / locate.library_name()
    handle = ctypes.CDLL(str(library))
    assert handle.psk_abi() == ABI
    assert not hasattr(handle, "_Z6hiddenv")


def test_only_what_is_needed_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == {f"{locate.MODULE}/{name}" for name in ("__init__.py", locate.library_name())}


def test_the_versions_agree() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert project["version"] == __version__
