"""`powerserve qnn convert`, `stat` and `simple-test`, and the original's command lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime_qnn", reason="onnxruntime-qnn has no wheel for this platform")

from command_line import PROGRAM, status_of
from hf_checkpoints import TinyCheckpoint, write_checkpoint
from npu_conversions import TEXT, tiny_npu_model
from powerserve.backend.qnn.config_file import read_qnn_config

ROOT = Path(__file__).parents[2]
SMALL = ("--cache-size", "64", "--context-size", "80", "--silent")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_npu_model(tmp_path, "llama")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.md"
    path.write_text(TEXT)
    return path


def test_the_command_of_the_originals_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "Llama-3.1-8B-Instruct", TinyCheckpoint(head_dim=32))
    monkeypatch.chdir(tmp_path)  # neither prompt file is here: they come with PowerServe
    status = status_of(
        *("qnn", "convert"),
        *("--model-folder", "Llama-3.1-8B-Instruct"),
        *("--model-name", "llama3_1_8b"),
        *("--system-prompt-file", "system_prompt_llama.txt"),
        *("--prompt-file", "./prompt/lab_intro_llama.md"),
        *("--batch-sizes", "1", "8"),
        *("--artifact-name", "llama3_1_8b"),
        *("--n-model-chunk", "2"),
        *("--output-folder", "./llama3.1-8b-QNN"),
        *("--build-folder", "./llama3.1-8b-QNN-tmp"),
        *("--max-n-tokens", "60", "--n-threads", "2", "--fp16-lm-head"),
        *("--silent", "--clear-build-files", "--soc", "8650"),
        # a tiny model's cache, and no time for the emulator:
        *("--cache-size", "144", "--context-size", "160", "--no-gate"),
    )
    assert status == 0
    assert "not compared" in capsys.readouterr().out
    folder = tmp_path / "llama3.1-8b-QNN"
    config = read_qnn_config(folder)
    assert sorted(path.name for path in folder.glob("*.bin")) == [
        *("llama3_1_8b_0.bin", "llama3_1_8b_1.bin", "lm_head.bin"),
    ]
    assert config.num_system_tokens > 0
    assert not (tmp_path / "llama3.1-8b-QNN-tmp").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "8gen9"], "the SoC '8gen9' is not known"),
        (["--batch-sizes", "1", "128"], "larger than the cache"),
        (["--n-model-chunks", "3"], "3 chunks are too many for 2 layers"),
        (["--prompt-file", "none.txt"], "none.txt cannot be read"),
        (["--max-n-tokens", "5"], "5 tokens are too few to calibrate with"),
        (["--artifact-name", "a/b"], "cannot begin a file's name"),
        (["--fp16-heads", "2"], "attn_0_stat.json"),
        (["--soc-table", "none.toml"], "none.toml cannot be read"),
    ],
)
def test_mistakes_get_a_sentence(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    folders = ("--build-folder", tmp_path / "b", "--output-folder", tmp_path / "o")
    defaults = () if "--batch-sizes" in arguments else ("--batch-sizes", "1")
    status = status_of(
        "qnn", "convert", "--model-folder", model, *folders, *defaults, *SMALL, *arguments
    )
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", [b"GGUF", b"no model at all"])
def test_a_damaged_model_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(content)
    build = ("--build-folder", tmp_path / "b")
    assert status_of("qnn", "convert", "--model-folder", model, *build, *SMALL) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_stat_files_name_what_stays_in_floating_point(
    tmp_path: Path, model: Path, text: Path
) -> None:
    texts = ("--prompt-file", text, "--build-folder", tmp_path / "b")
    assert status_of("qnn", "stat", "--model-folder", model, *texts, "--silent") == 0
    assert sorted(json.loads((tmp_path / "stat" / "attn_1_stat.json").read_bytes())) == [0, 1, 2, 3]
    assert len(json.loads((tmp_path / "stat" / "ffn_0_stat.json").read_bytes())) == 128
    outliers = ("--fp16-heads", "1", "--fp16-neurons", "16", "--fp16-ffn-layers", "1")
    status = status_of(
        *("qnn", "convert", "--model-folder", model, *texts, *SMALL, *outliers),
        *("--output-folder", tmp_path / "o", "--batch-sizes", "1", "--soc", "8gen4"),
    )
    assert status == 0
    report = json.loads((tmp_path / "o" / "report.json").read_bytes())
    assert report["failures"] == []


def test_random_perceptrons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ("--dims", "64", "128", "-b", "4", "--output-folder", tmp_path, "--repeat", "2", "-q")
    assert status_of("qnn", "simple-test", "--model-num", "2", *sizes) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["graph 0", "graph 1"]
    assert all(float(line.rpartition(" ")[2]) > 0.9999 for line in lines)
    compiled_at = (tmp_path / "simple.bin").stat().st_mtime_ns
    assert status_of("qnn", "simple-test", "--no-convert", *sizes) == 0
    assert (tmp_path / "simple.bin").stat().st_mtime_ns == compiled_at
    assert status_of("qnn", "simple-test", "--no-convert", "--model-name", "other", *sizes) == 2
    assert "run this once without --no-convert" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_ends_a_compilation_and_leaves_nothing(tmp_path: Path) -> None:
    command = [
        *(*PROGRAM, "qnn", "simple-test", "--dims", "1024", "2048", "-b", "1", "--repeat", "1"),
        *("--model-num", "8", "--output-folder", str(tmp_path)),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".simple.bin.*")) and not (tmp_path / "simple.bin").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors
    assert not list(tmp_path.glob(".simple*"))


@pytest.mark.parametrize(
    "script", ["qnn_converter/converter.py", "simple_qnn_test/simple_convert_qnn.py"]
)
def test_the_originals_scripts(script: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / script, "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--model-name" in done.stdout
