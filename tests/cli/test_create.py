"""`powerserve create` and `powerserve-config-generator` as a user calls them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_folders import write_model_folder, write_workspace_folder
from powerserve.cli import create
from powerserve.cli import main as cli
from powerserve.storage.resolve import resolve_model
from tiny_models import TinyModel, write_tiny_model

FLAT_JSON = b"""{
    "model_arch": "llama",
    "version": 20241202,
    "embed_dim": 64,
    "ffn_dim": 128,
    "n_attn_heads": 4,
    "n_attn_kv_heads": 2,
    "n_layers": 2,
    "n_ctx": 512,
    "head_size": 16,
    "kv_dim": 32,
    "vocab_size": 299,
    "norm_eps": NORM_EPS,
    "rope_dim": 16,
    "rope_freq_base": 10000.0,
    "rope_scale_type": "linear",
    "rope_attn_factor": 1.0,
    "n_rope_ctx_orig": 512,
    "rope_freq_scale": 1.0,
    "rope_type": 0
}"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and store, and no QNN SDK."""
    folder = tmp_path / "current folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("POWERSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    return folder


def run(*arguments: str | Path) -> int:
    return cli.main([str(each) for each in arguments])


def test_all_flags_of_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, draft, x, y = (write_model_folder(tmp_path / name, name) for name in "mdxy")
    (tmp_path / "exe files").mkdir()
    (tmp_path / "exe files/tool").write_text("t")
    flags = ("-m", main, "-d", draft, "--other-models", x, y, "-o", "my proj")
    assert run("create", *flags, "--exe-path", tmp_path / "exe files", "--no-extract-qnn") == 0
    folder = Path("my proj")
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [
        "bin", "d", "m", "x", "y",
    ]  # fmt: skip
    assert (folder / "bin/tool").read_text() == "t"
    assert capsys.readouterr() == ("my proj: a workspace with m, d, x, y\n", "")


def test_the_default_place_is_proj(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("create", "--main-model", write_model_folder(tmp_path / "m")) == 0
    assert resolve_model("proj").name == "m"
    assert "QNN_SDK_ROOT is not set" in capsys.readouterr().err


def test_a_gguf_file_and_a_store_name_are_models_too(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "tiny.gguf", TinyModel("qwen2"))
    stored = tmp_path / "home/models/stored.gguf"
    stored.parent.mkdir(parents=True)
    write_tiny_model(stored, TinyModel("qwen2", seed=1))
    assert run("create", "-m", path, "-d", "stored", "--no-extract-qnn") == 0
    source = resolve_model("proj")
    assert source.draft is not None
    assert (source.name, source.draft.name) == ("tiny", "stored")
    assert source.model_json is not None
    description = json.loads(source.model_json.read_text())
    assert description["model_arch"] == "qwen2"
    assert description["llm_config"]["rope_config"]["rope_type"] == -1
    assert len(description["model_id"]) == 16


def test_a_workspace_passes_on_its_main_and_draft(tmp_path: Path) -> None:
    write_workspace_folder(tmp_path / "old", "big", "small")
    assert run("create", "-m", tmp_path / "old", "--no-extract-qnn") == 0
    source = resolve_model("proj")
    assert source.draft is not None
    assert (source.name, source.draft.name) == ("big", "small")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "name the main model with -m"),
        (("-m", "gone"), "no model answers to `gone`"),
        (("-m", "../m", "-d", "../copy"), "have the same `model_id` (one)"),
        (("-m", "../m", "--exe-path", "gone"), "--exe-path: there is no folder gone"),
        (("-m", "../m", "-o", "../file"), "cannot make the workspace ../file: "),
    ],
)
def test_mistakes_end_with_a_sentence_and_status_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    write_model_folder(tmp_path / "m", "one")
    write_model_folder(tmp_path / "copy", "one")
    (tmp_path / "file").write_text("")
    assert run("create", *arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("powerserve create: error: ")
    assert sentence in told
    assert not Path("proj").exists()


def test_only_the_qnn_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "sdk/lib/aarch64-android/libQnnHtp.so"
    library.parent.mkdir(parents=True)
    library.write_text("")
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path / "sdk"))
    assert run("create", "--only-extract-qnn") == 0
    assert [path.as_posix() for path in Path("proj").rglob("*")] == [
        "proj/qnn_libs",
        "proj/qnn_libs/libQnnHtp.so",
    ]
    assert f"has no {library.with_name('libQnnSystem.so')}" in capsys.readouterr().err


def test_only_and_no_contradict_each_other() -> None:
    with pytest.raises(SystemExit) as caught:
        run("create", "--only-extract-qnn", "--no-extract-qnn")
    assert caught.value.code == 2


def test_launchers_exist_for_the_programs_there_are(tmp_path: Path) -> None:
    assert run("create", "-m", write_model_folder(tmp_path / "m"), "--no-extract-qnn") == 0
    made = {path.name for path in Path("proj/bin").iterdir()}
    assert made == {program for program, name in create.PROGRAMS.items() if hasattr(cli, name)}
    assert "powerserve-config-generator" in made


@pytest.mark.skipif(os.name == "nt", reason="sh scripts")
def test_every_launcher_runs(tmp_path: Path) -> None:
    assert run("create", "-m", write_model_folder(tmp_path / "m"), "--no-extract-qnn") == 0
    # A file that would shadow a module, were the current folder searched for modules.
    Path("json.py").write_text("raise SystemExit('shadowed')")
    for program in sorted(Path("proj/bin").iterdir()):
        result = subprocess.run(
            [program.absolute(), "--help"], capture_output=True, text=True, timeout=60
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"usage: {program.name}")


def test_config_generator_writes_flat_json(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "t.gguf", TinyModel())
    assert run("config-generator", "--file-path", path, "--target-path", "out.json") == 0
    written = Path("out.json").read_bytes()
    norm_eps = json.loads(written)["norm_eps"]
    assert norm_eps == pytest.approx(1e-5)
    assert written == FLAT_JSON.replace(b"NORM_EPS", repr(norm_eps).encode())


def test_config_generator_keeps_the_old_file_when_the_model_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    Path("out.json").write_text("old")
    flags = ("--file-path", tmp_path / "bad.gguf", "--target-path", "out.json")
    assert run("config-generator", *flags) == 2
    assert "bad.gguf" in capsys.readouterr().err
    assert Path("out.json").read_text() == "old"
    good = write_tiny_model(tmp_path / "t.gguf", TinyModel())
    assert run("config-generator", "--file-path", good, "--target-path", "no/out.json") == 2
    assert "cannot write no/out.json: No such file or directory" in capsys.readouterr().err


def test_config_generator_does_not_read_the_tensors(tmp_path: Path) -> None:
    """A model whose tensors are a hole of 8 GiB is described at once, in little memory."""
    path = write_tiny_model(tmp_path / "t.gguf", TinyModel())
    os.truncate(path, 8 << 30)
    script = (
        "import sys; from powerserve.cli.main import main; from powerserve.core import machine;"
        "status = main(sys.argv[1:]); print(machine.peak_memory() >> 20); sys.exit(status)"
    )
    flags = ("config-generator", "--file-path", path, "--target-path", "out.json")
    result = subprocess.run(
        [sys.executable, "-c", script, *flags], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) < 300  # MiB
