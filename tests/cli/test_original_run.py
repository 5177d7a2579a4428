"""`powerserve-run`, whose flags and lines are those of the original."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from command_line import original_run, status_of
from tiny_models import TinyModel, write_tiny_model

Capture = pytest.CaptureFixture[str]

LINES = r"""\[INFO \] after model init: \[Memory\(MB\)\] VMS: \d+, RSS: \d+
\[INFO \] seed: 7
\[INFO \] after sampler init: \[Memory\(MB\)\] VMS: \d+, RSS: \d+
\[INFO \] prompt      : "hello world"
\[INFO \] n_predicts  : 5
\[INFO \] model arch  : llama
\[INFO \] n_threads   : 1
\[INFO \] batch_size   : 128
hello world(?P<answer>(?s:.*))
\[INFO \] prefill time: \d+\.\d+ s
\[INFO \] prefill speed \(\d+ tokens\): \d+\.\d+ tokens/s
\[INFO \] decode speed \(4 tokens\): \d+\.\d+ tokens/s
\[INFO \] total speed: \d+\.\d+ tokens/s
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


@pytest.fixture
def workspace(tiny: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "work space"
    draft = write_tiny_model(tmp_path / "small.gguf", TinyModel("qwen2"))
    flags = ("-m", tiny, "-d", draft, "-o", folder, "--no-extract-qnn")
    assert status_of("create", *flags) == 0
    return folder


def test_every_line_in_the_original_order(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-p", "hello world", "-n", "5", "-t", "1", "-b", "128", "--seed", "7", "--ignore-eos")
    assert original_run(monkeypatch, "-m", tiny, *flags) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(LINES, printed.out), printed.out
    assert printed.err == ""


def test_a_printed_seed_repeats_the_text(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-m", tiny, "--temp", "2", "--ignore-eos")

    def seed_and_answer(*more: str) -> tuple[str, str]:
        assert original_run(monkeypatch, *flags, *more) == 0
        out = capsys.readouterr().out
        found = re.search(r"seed: (\d+)(?s:.*)\nOnce upon a time((?s:.*))\n\[", out)
        assert found is not None
        return found[1], found[2].partition("[INFO ]")[0]

    seed, text = seed_and_answer()
    assert seed_and_answer("--seed", seed) == (seed, text)
    assert seed_and_answer()[1] != text


def test_a_long_prompt_is_shown_in_part(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert original_run(monkeypatch, "-m", tiny, "-p", "x" * 60, "-n", "1") == 0
    assert f'prompt      : "{"x" * 50}" (omit 10 chars)\n' in capsys.readouterr().out


def test_n_zero_prints_a_newline_and_no_statistics(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert original_run(monkeypatch, "-m", tiny, "-n", "0") == 0
    out = capsys.readouterr().out
    assert out.endswith("batch_size   : 512\n\n")


def test_the_end_of_the_text_is_marked(
    tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Token 298 is <|im_end|>, an end token; 296 is <|endoftext|>, here also BOS: silent.
    for token, mark in (("298", "[end of text]"), ("296", "")):
        bias = ("--logit-bias", f"{token}=1000")
        assert original_run(monkeypatch, "-m", tiny, "-p", "hello", *bias) == 0
        assert f"\nhello{mark}\n[INFO ] prefill" in capsys.readouterr().out


def test_a_workspace_runs_by_flags_and_by_its_launcher(workspace: Path) -> None:
    flags = ("--work-folder", str(workspace), "--prompt", "hello", "--no-qnn", "-n", "4")
    program = workspace / "bin/powerserve-run"
    done = subprocess.run([program, *flags], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "[INFO ] seed: 0\n" in done.stdout  # from hparams.json
    assert "\nhello" in done.stdout
    assert "decode speed (3 tokens)" in done.stdout


def test_threads_and_batch_come_from_hparams_unless_given(
    workspace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "hparams.json").write_text('{"n_threads": 1, "batch_size": 77}')
    assert original_run(monkeypatch, "-d", workspace, "-n", "1") == 0
    out = capsys.readouterr().out
    assert "n_threads   : 1\n" in out and "batch_size   : 77\n" in out
    assert (
        original_run(monkeypatch, "-d", workspace, "-n", "1", "-t", "2", "--batch_size", "9") == 0
    )
    out = capsys.readouterr().out
    assert "n_threads   : 2\n" in out and "batch_size   : 9\n" in out


TREE_LINES = r"""Speculative token tree statistics:
- \d+ iterations, 11 generated tokens
- \d+\.\d{3} tokens/iteration
- \d+\.\d{3} draft-forwards/iteration
- Accept ratio: \d+\.\d{3}%
- Draft effective ratio: \d+\.\d{3}%
"""


def test_speculation_takes_the_workspace_draft_and_prints_its_statistics(
    workspace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-d", workspace, "-n", "12", "--ignore-eos", "--temp", "0")
    assert original_run(monkeypatch, *flags) == 0
    plain = capsys.readouterr().out
    tree = ("--use-spec", "--token-tree-early-stop", "false", "--draft-batch-size", "6")
    assert original_run(monkeypatch, *flags, *tree) == 0
    speculative = capsys.readouterr().out
    assert re.search(TREE_LINES + r"\Z", speculative), speculative
    assert answer_line(speculative) == answer_line(plain)
    assert original_run(monkeypatch, *flags[:3], "1", *tree) == 0  # no step after the prompt's
    assert "nan" not in capsys.readouterr().out


def test_speed_and_counters_go_to_the_dump_file(
    workspace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dump = tmp_path / "dump.json"
    monkeypatch.setenv("dump_file", str(dump))
    flags = ("-d", workspace, "-n", "6", "--ignore-eos", "--temp", "0")
    assert original_run(monkeypatch, *flags) == 0
    plain = json.loads(dump.read_text())
    assert set(plain) == {"prefill_tokens", "prefill_time", "decode_tokens", "decode_time"}
    assert plain["decode_tokens"] == 5
    printed = re.search(r"prefill time: (\S+) s", capsys.readouterr().out)
    assert printed is not None
    assert plain["prefill_time"] == pytest.approx(1000 * float(printed[1]), abs=0.6)
    assert original_run(monkeypatch, *flags, "--use-spec") == 0
    assert json.loads(dump.read_text())["n_generated_tokens"] == 5
    monkeypatch.setenv("dump_file", str(tmp_path / "no/dump.json"))
    assert original_run(monkeypatch, *flags) == 2
    assert "(of the variable dump_file) cannot be written" in capsys.readouterr().err


def answer_line(printed: str) -> str:
    """Prompt and answer."""
    (line,) = (line for line in printed.splitlines() if line.startswith("Once upon a time"))
    return line


def test_the_workspace_draft_serves_another_main_model_too(
    workspace: Path, tiny: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("-d", workspace, "-m", tiny, "-n", "12", "--ignore-eos", "--use-spec")
    assert original_run(monkeypatch, *flags) == 0
    assert re.search(r"- [1-9]\d*\.\d{3} draft-forwards", capsys.readouterr().out)


def test_errors_carry_the_program_name(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert original_run(monkeypatch, "-m", "nowhere", "-p", "x") == 2
    assert capsys.readouterr().err.startswith("powerserve-run: error: no model answers to")
