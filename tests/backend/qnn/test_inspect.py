"""`powerserve qnn inspect`: what a context binary says, and what is said of files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from powerserve.backend.qnn import inspect
from powerserve.backend.qnn.inspect import TensorInfo, inspect_binary, qnn_version
from powerserve.backend.qnn.libraries import QnnLibraries, find_libraries
from powerserve.backend.qnn.tensors import F16, F32, TensorSpec
from powerserve.cli.main import main
from powerserve.core.errors import BackendError
from stub_qnn_library import build_stub, compiler_or_skip
from tiny_binaries import TinyBinary, compile_tiny

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> TinyBinary:
    """Two graphs in one binary, for a SoC that is not the emulator's."""
    return compile_tiny(tmp_path_factory.mktemp("shared"), [1, 8], soc="8750")


def test_graphs_and_tensors_are_those_that_were_compiled(shared: TinyBinary) -> None:
    info = inspect_binary(shared.path, find_libraries())
    assert (info.soc_model, info.version[0]) == (69, 2)
    assert [graph.name for graph in info.graphs] == [graph.name for graph in shared.graphs]
    for found, compiled in zip(info.graphs, shared.graphs, strict=True):
        for tensors, specs in (
            (found.inputs, compiled.spec.inputs),
            (found.outputs, compiled.spec.outputs),
        ):
            assert [tensor.name for tensor in tensors] == [spec.name for spec in specs]
            assert all(map(TensorInfo.fits, tensors, specs))
    codes = info.graphs[0].inputs[2]
    assert codes.type_name == "quantised uint16"
    assert (codes.scale, codes.offset) == (pytest.approx(0.01), -100)


def test_the_command_prints_text_and_json(
    shared: TinyBinary, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["qnn", "inspect", str(shared.path)]) == 0
    text = capsys.readouterr().out
    assert "for SoC 69, Snapdragon 8 Elite\n" in text
    assert "  in  codes     quantised uint16 [8, 32] scale 0.01 offset -100\n" in text
    assert "  out y         float32 [1, 64]\n" in text
    assert main(["qnn", "inspect", "--json", str(shared.path)]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["graphs"][1]["inputs"][0] == {"name": "x", "data_type": 562, "shape": [8, 32]}


@pytest.mark.parametrize("damage", ["foreign", "cut", "garbled"])
def test_a_file_that_is_no_binary_is_said_so(
    shared: TinyBinary, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shared.path.read_bytes()
    path = tmp_path / "file.bin"
    content = {
        "foreign": b"GGUF" + bytes(1000),
        "cut": whole[: len(whole) // 2],
        "garbled": bytes(reversed(whole)),
    }[damage]
    path.write_bytes(content)
    assert main(["qnn", "inspect", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"powerserve qnn: error: {path} cannot be inspected: "
        "it is no context binary of QNN, or a damaged one\n"
    )


def test_a_missing_or_empty_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="none cannot be inspected: it cannot be read: No such"):
        inspect_binary(tmp_path / "none", find_libraries())
    (tmp_path / "empty").touch()
    with pytest.raises(BackendError, match="empty cannot be inspected: it is empty"):
        inspect_binary(tmp_path / "empty", find_libraries())


def test_another_system_library_is_not_touched(
    shared: TinyBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = build_stub(tmp_path / "stub", compiler_or_skip(), rpc_memory=False)
    monkeypatch.setenv("STUB_SYSTEM_MAJOR", "2")
    with pytest.raises(BackendError, match=r"speaks version 2\.0\.0 .* 1\.x is needed"):
        inspect_binary(shared.path, libraries)
    with pytest.raises(BackendError, match=r"QnnSystem.so cannot be used: .*cannot open"):
        inspect_binary(shared.path, QnnLibraries(tmp_path))


def test_a_crash_over_a_file_is_one_sentence(
    shared: TinyBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "COMMAND", ("/bin/sh", "-c", "kill -SEGV $$"))
    with pytest.raises(BackendError, match=r"inspected: Qualcomm's library crashed \(SIGSEGV\)"):
        inspect_binary(shared.path, find_libraries())


def test_libraries_are_those_of_the_sdk_if_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    wheel = find_libraries()
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path))
    assert find_libraries() == wheel  # the SDK has none for this machine
    folder = tmp_path / "lib" / "x86_64-linux-clang"
    folder.mkdir(parents=True)
    for name in ("libQnnHtp.so", "libQnnSystem.so"):
        (folder / name).touch()
    assert find_libraries() == QnnLibraries(folder)


def test_what_numbers_mean() -> None:
    assert qnn_version("v2.51.0.260929181845") == (2, 51, 0)
    assert qnn_version("") == ()
    tensor = TensorInfo("x", 0x216, (1, 2))
    assert tensor.fits(TensorSpec("x", F16, (1, 2)))
    assert not tensor.fits(TensorSpec("x", F32, (1, 2)))
    assert not tensor.fits(TensorSpec("x", F16, (2, 1)))
    assert TensorInfo("x", 0x999, ()).type_name == "type 0x999"
