"""Which NPU files are taken, and what is to execute them."""

from __future__ import annotations

from pathlib import Path

import pytest

from powerserve.backend.qnn import opening
from powerserve.backend.qnn.options import NpuMode, NpuOptions
from powerserve.backend.qnn.runtime import build
from powerserve.backend.qnn.runtime.cpu import CpuRuntime
from powerserve.backend.qnn.runtime.process import ProcessRuntime
from powerserve.core.errors import BackendError

EMULATOR = NpuOptions(NpuMode.EMULATOR)


@pytest.mark.parametrize(
    ("system", "machine", "may_have_one"),
    [
        ("linux", "x86_64", False),
        ("darwin", "arm64", False),
        ("linux", "aarch64", True),
        ("win32", "ARM64", True),
    ],
)
def test_only_snapdragons_have_an_npu(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, may_have_one: bool
) -> None:
    monkeypatch.setattr("sys.platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    if may_have_one:
        opening.check_npu()
        return
    with pytest.raises(BackendError, match="has no Snapdragon NPU"):
        opening.check_npu()


def test_every_mode_has_its_folder(tmp_path: Path) -> None:
    def folder(mode: NpuMode) -> str:
        return opening.folder_for(tmp_path, mode).relative_to(tmp_path).as_posix()

    assert folder(NpuMode.REQUIRED) == "."
    assert folder(NpuMode.CPU) == "cpu"
    assert folder(NpuMode.EMULATOR) == "."  # an older conversion without shared weights
    (tmp_path / "emulator").mkdir()
    (tmp_path / "emulator" / "config.json").touch()
    assert folder(NpuMode.EMULATOR) == "emulator"


def test_the_emulator_is_for_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(BackendError, match="emulator runs on x86-64, not on aarch64"):
        opening.open_runtime(EMULATOR, 1)


def test_without_a_helper_onnx_runtime_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Path:
        raise BackendError("there is no compiler")

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(build, "helper_executable", refuse)
    runtime = opening.open_runtime(EMULATOR, 1)
    runtime.close()
    assert isinstance(runtime, ProcessRuntime)


def test_quantised_graphs_need_no_npu() -> None:
    assert isinstance(opening.open_runtime(NpuOptions(NpuMode.CPU), 1), CpuRuntime)
