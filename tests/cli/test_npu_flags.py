"""Flags that say whether a model with NPU files runs on the NPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from command_line import original_run, status_of
from tiny_models import write_tiny_model

if TYPE_CHECKING:
    from npu_conversions import Converted

Capture = pytest.CaptureFixture[str]
PROMPT = ("-p", "hello world", "-n", "6", "--temp", "0", "--ignore-eos", "-t", "1")


@pytest.fixture
def no_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")


@pytest.fixture
def folder(npu_model: Converted, tmp_path: Path) -> Path:
    """A model folder with the converted files."""
    weights = tmp_path / "tiny" / "ggml" / "weights.gguf"
    weights.parent.mkdir(parents=True)
    weights.symlink_to(npu_model.conversion.source)
    (tmp_path / "tiny" / "qnn").symlink_to(npu_model.folder)
    return tmp_path / "tiny"


def answer(capsys: Capture, model: Path, *flags: str) -> dict[str, object]:
    assert status_of("run", "-m", model, *PROMPT, "--json", *flags) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def failure(capsys: Capture, model: Path, *flags: str) -> str:
    assert status_of("run", "-m", model, *PROMPT, *flags) == 2
    return capsys.readouterr().err.removeprefix("powerserve run: error: ").strip()


@pytest.mark.usefixtures("no_npu")
def test_without_an_npu_the_cpu_answers(
    folder: Path, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    silent = answer(capsys, folder, "--no-qnn")
    assert not caplog.records
    assert answer(capsys, folder)["text"] == silent["text"]
    assert [record.message for record in caplog.records] == [
        "tiny runs on the CPU: this machine (Linux, x86_64) has no Snapdragon NPU"
    ]
    expected = "this machine (Linux, x86_64) has no Snapdragon NPU"
    assert failure(capsys, folder, "--qnn") == expected


def test_the_quantised_graphs_run_on_the_cpu(folder: Path, capsys: Capture) -> None:
    found = answer(capsys, folder, "--qnn-cpu")
    assert answer(capsys, folder, "--qnn-cpu", "-c", "64")["text"] == found["text"]
    assert failure(capsys, folder, "--qnn-cpu", "-c", "65") == (
        "the model was compiled for the NPU with a cache of 64 tokens, not 65; -c 64 fits, "
        "and --no-qnn runs it on the CPU"
    )
    kv = failure(capsys, folder, "--qnn-cpu", "--kv-type", "q8_0")
    assert kv == "the NPU keeps its KV cache in F16, not Q8_0"


def test_the_system_prompt_can_stand_before_everything(folder: Path, capsys: Capture) -> None:
    """Fewer tokens are left for the prompt and its answer, which is another one."""
    before = answer(capsys, folder, "--qnn-cpu", "--qnn-system-kv", "use")
    assert before["text"] != answer(capsys, folder, "--qnn-cpu")["text"]
    too_long = failure(capsys, folder, "--qnn-cpu", "--qnn-system-kv", "use", "-c", "64")
    assert "cache of" in too_long and "64 tokens" not in too_long


def test_the_originals_program_takes_the_flags(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workspace brings Qualcomm's libraries along."""
    work = folder.parent
    (work / "workspace.json").write_text(json.dumps({"model_main": "tiny"}))
    prompt = ("-p", "hello world", "-n", "2")
    assert original_run(monkeypatch, "-d", work, *prompt, "--no-qnn") == 0
    (work / "qnn_libs").mkdir()
    assert original_run(monkeypatch, "-d", work, *prompt, "--qnn-emulator") == 2
    expected = f"{work / 'qnn_libs'} lacks libQnnHtp.so or libQnnSystem.so"
    assert expected in capsys.readouterr().err


def test_a_model_without_npu_files_is_named(tmp_path: Path, capsys: Capture) -> None:
    path = write_tiny_model(tmp_path / "plain.gguf")
    for flag in ("--qnn", "--qnn-emulator", "--qnn-cpu"):
        assert failure(capsys, path, flag) == (
            "plain has no NPU files (a model folder with qnn/config.json); "
            "`powerserve qnn convert` makes them"
        )


def test_files_that_do_not_fit_are_named(
    folder: Path, npu_model: Converted, capsys: Capture
) -> None:
    (folder / "qnn").unlink()
    shutil.copytree(npu_model.folder, folder / "qnn")
    binary = next((folder / "qnn" / "emulator").glob("tiny_0_batch_1*.bin"))
    binary.write_bytes(b"nonsense")
    assert str(binary) in failure(capsys, folder, "--qnn-emulator")
    (folder / "qnn" / "cpu" / "config.json").unlink()
    assert failure(capsys, folder, "--qnn-cpu") == (
        f"{folder / 'qnn'} has no quantised graphs for the CPU; `powerserve qnn convert --cpu` "
        "delivers them"
    )
    weights = folder / "ggml" / "weights.gguf"
    weights.unlink()
    write_tiny_model(weights)
    shutil.copytree(npu_model.folder / "cpu", folder / "qnn" / "cpu", dirs_exist_ok=True)
    assert "was made for another model" in failure(capsys, folder, "--qnn-cpu")
