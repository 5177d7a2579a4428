"""`powerserve export`: a model folder that runs, appears whole or not at all, and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from command_line import status_of
from hf_checkpoints import TinyCheckpoint, checkpoint_logits, checkpoint_weights, write_checkpoint
from hf_tokenizers import vocab_size
from powerserve import LLM
from powerserve.convert.checkpoint import Checkpoint
from powerserve.convert.gguf_plan import write_plan
from powerserve.convert.hf_to_gguf import ConversionOptions, plan_conversion
from powerserve.storage import atomic
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.model_folder import ModelFolder
from safetensors_files import entry, write_raw

IDS = [5, 17, 200, 33, 8, 250, 71, 5, 0]
TOOLS = Path(__file__).parents[2] / "tools"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_folder_has_the_originals_files(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint("Qwen2ForCausalLM")
    folder = write_checkpoint(tmp_path / "hf", checkpoint)
    assert status_of("export", "-m", folder, "-o", tmp_path / "a b/out", "-q") == 0
    out = tmp_path / "a b/out"
    assert files(out) == {"model.json", "vocab.gguf", "ggml/weights.gguf"}
    description = json.loads((out / "model.json").read_text())
    assert description["model_arch"] == "qwen2"
    assert description["llm_config"]["vocab_size"] == vocab_size(folder)
    assert description["llm_config"]["rope_config"]["rope_type"] == -1
    weights, vocab = GGUFFile.open(out / "ggml/weights.gguf"), GGUFFile.open(out / "vocab.gguf")
    assert not vocab.tensors
    assert list(vocab.metadata) == list(weights.metadata)
    matrices = [tensor for tensor in weights.tensors.values() if len(tensor.shape) == 2]
    assert {str(tensor.dtype) for tensor in matrices} == {"Q8_0"}


def test_a_workspace_of_it_generates_what_the_checkpoint_says(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint()
    folder = write_checkpoint(tmp_path / "hf", checkpoint)
    weights = checkpoint_weights(checkpoint, vocab_size(folder))
    assert status_of("export", "-m", folder, "-o", tmp_path / "m", "-t", "f32", "-q") == 0
    workspace = tmp_path / "work"
    assert status_of("create", "-m", tmp_path / "m", "-o", workspace, "--no-extract-qnn") == 0
    with LLM(workspace) as llm:
        prompt = "The ferry left the harbour"
        ids = llm.loaded.tokenizer.encode(prompt)
        answer = llm.generate(prompt, max_tokens=5, temperature=0, ignore_eos=True)
    expected = []
    for _ in range(5):
        logits = checkpoint_logits(checkpoint, weights, [*ids, *expected])[-1]
        expected.append(int(logits.argmax()))
    assert answer.token_ids == expected


def test_ids_follow_from_the_content(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "hf")
    other = write_checkpoint(tmp_path / "other/hf", TinyCheckpoint(seed=1))
    for name, folder in (("a", first), ("b", first), ("c", other)):
        assert status_of("export", "-m", folder, "-o", tmp_path / name, "-q") == 0
    a, b, c = (ModelFolder(tmp_path / name).model_id() for name in "abc")
    assert a == b != c
    assert status_of("export", "-m", first, "-o", tmp_path / "d", "--model-id", "mine", "-q") == 0
    assert ModelFolder(tmp_path / "d").model_id() == "mine"


def test_npu_files_are_copied_and_never_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    qnn = tmp_path / "model bin"
    (qnn / "kv").mkdir(parents=True)
    for name in ("config.json", "model_0.bin", "kv/layer_0_key_0.raw"):
        (qnn / name).write_text(name)
    out = tmp_path / "m"
    assert status_of("export", "-m", folder, "-o", out, "--qnn-path", qnn, "-q") == 0
    assert {"qnn/config.json", "qnn/model_0.bin", "qnn/kv/layer_0_key_0.raw"} <= files(out)
    before = files(out)
    assert status_of("export", "-m", folder, "-o", out, "-q") == 2
    assert f"keep them with `--qnn-path {out / 'qnn'}`" in capsys.readouterr().err
    assert status_of("export", "-m", folder, "-o", out, "--qnn-path", out / "qnn", "-q") == 0
    assert files(out) == before


def test_only_the_embedding_table(tmp_path: Path) -> None:
    checkpoint = TinyCheckpoint("Qwen2ForCausalLM", dtype="BF16")
    folder = write_checkpoint(tmp_path / "hf", checkpoint)
    table = checkpoint_weights(checkpoint, vocab_size(folder))["model.embed_tokens.weight"]
    flags = ("--only-embed", "-t", "f32", "-q")
    assert status_of("export", "-m", folder, "-o", tmp_path / "m", *flags) == 0
    weights = GGUFFile.open(tmp_path / "m/ggml/weights.gguf")
    assert list(weights.tensors) == ["token_embd.weight"]
    np.testing.assert_array_equal(
        weights.tensors["token_embd.weight"].data.view(np.float32).reshape(table.shape), table
    )
    description = json.loads((tmp_path / "m/model.json").read_text())
    assert description["llm_config"]["n_layers"] == checkpoint.num_layers


@pytest.mark.parametrize(
    ("out", "complaint"),
    [
        ("hf", "holds the checkpoint itself"),
        (".", "holds the checkpoint itself"),
        ("full", "is not empty and no model folder"),
        ("file", "is a file"),
        ("file/m", "cannot be written"),
    ],
)
def test_nothing_else_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, complaint: str
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    before = files(tmp_path)
    assert status_of("export", "-m", folder, "-o", tmp_path / out, "-q") == 2
    assert complaint in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize("qnn", ["none", "hf"])
def test_wrong_npu_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], qnn: str) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    (tmp_path / "hf/config.json").rename(tmp_path / "config.json")
    flags = ("-m", folder, "-o", tmp_path / "m", "--qnn-path", tmp_path / qnn)
    assert status_of("export", *flags) == 2
    assert "--qnn-path" in capsys.readouterr().err


def test_the_originals_script_and_default_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    command = [sys.executable, TOOLS / "gguf_export.py", "-m", folder, "--target-arch", "aarch64"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (out,) = tmp_path.glob("model-20*")
    assert f"{out.name}: a model folder with the id {ModelFolder(out).model_id()}" in done.stdout
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert again.returncode == 2
    assert f"{out.name} exists already: name a folder with -o" in again.stderr


# The command, which stops itself, as by Ctrl-Z, when it has written some of the tensors.
STOPPING = """
import itertools, os, signal, sys
from powerserve.cli.main import main
from powerserve.convert.element_types import ElementConverter

original, count = ElementConverter.pieces, itertools.count()

def pieces(self, tensor, dtype):
    for piece in original(self, tensor, dtype):
        yield piece
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)

ElementConverter.pieces = pieces
sys.exit(main(sys.argv[1:]))
"""


def stopped_while_writing(*arguments: str | Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPING, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    return process


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("command", ["export", "convert"])
def test_stopped_in_the_middle_nothing_is_left_under_the_final_name(
    tmp_path: Path, command: str, stop: signal.Signals
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/m"
    arguments: tuple[str | Path, ...] = ("export", "-m", folder, "-o", target)
    if command == "convert":
        arguments = ("convert", "hf-to-gguf", folder, target, "--outtype", "q8_0")
    process = stopped_while_writing(*arguments)
    (partial,) = (tmp_path / "out").iterdir()
    assert atomic.is_partial(partial)
    process.send_signal(stop)
    process.send_signal(signal.SIGCONT)
    process.communicate()
    assert process.returncode == (130 if stop == signal.SIGINT else -stop)
    assert list((tmp_path / "out").iterdir()) == ([] if stop == signal.SIGINT else [partial])
    assert status_of(*arguments, "-q") == 0
    weights = target if command == "convert" else target / "ggml/weights.gguf"
    assert len(GGUFFile.open(weights).tensors) == 3 + 9 * TinyCheckpoint().num_layers


BIG = replace(TinyCheckpoint(), ffn_dim=1 << 18, tied=True)


def write_big_checkpoint(folder: Path) -> Path:
    """200 MB of zeros, which take no place on the disk."""
    small = replace(BIG, ffn_dim=32)
    write_checkpoint(folder, small)
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, "intermediate_size": BIG.ffn_dim}))
    header: dict[str, Any] = {}
    position = 0
    for name, values in checkpoint_weights(small, vocab_size(folder)).items():
        is_wide = "mlp" in name
        shape = [BIG.ffn_dim if is_wide and size == 32 else size for size in values.shape]
        end = position + 2 * int(np.prod(shape))
        header[name] = entry("F16", shape, position, end)
        position = end
    path = write_raw(folder / "model.safetensors", header)
    os.truncate(path, path.stat().st_size + position)
    return folder


def test_memory_holds_a_few_rows_at_a_time(tmp_path: Path) -> None:
    folder = write_big_checkpoint(tmp_path / "hf")  # its largest tensors are 67 MB as float32
    options = ConversionOptions("q8_0")
    plan = plan_conversion(Checkpoint(folder), options)
    tracemalloc.start()
    write_plan(plan, tmp_path / "m.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40_000_000
    assert plan.size_bytes == (tmp_path / "m.gguf").stat().st_size > 100_000_000
    (tmp_path / "m.gguf").unlink()  # pytest would keep it


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource limits of Linux")
@pytest.mark.parametrize("command", ["export", "convert"])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, command: str) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (70_000, 70_000));"
        "from powerserve.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    target = tmp_path / "out/m"
    flags = ("-m", folder, "-o", target) if command == "export" else ("hf-to-gguf", folder, target)
    done = subprocess.run(
        [sys.executable, "-c", script, command, *map(str, flags), "-q"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert f"{target} cannot be written: File too large" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_is_too_small_is_noticed_before_writing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "hf")
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert status_of("export", "-m", folder, "-o", tmp_path / "m", "-q") == 2
    assert "would be written, but only 1 kB are free" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
