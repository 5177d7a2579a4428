"""pull, list, show and rm as a user meets them; pulls from a hub are in tests/storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from powerserve.cli.main import main
from powerserve.storage.builtin import DEFAULT
from powerserve.storage.store import HubOrigin, ModelStore, StoredFile
from tiny_models import TinyModel, write_tiny_model

Capture = pytest.CaptureFixture[str]
MODEL = TinyModel("qwen2", dtype="Q8_0")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("POWERSERVE_HOME", str(tmp_path / "home"))
    store = ModelStore()
    store.folder.mkdir(parents=True)
    return store


@pytest.fixture
def tiny(store: ModelStore) -> Path:
    return write_tiny_model(store.folder / "tiny.Q8_0.gguf", MODEL)


def test_an_empty_store_says_how_to_get_a_model(capsys: Capture) -> None:
    assert main(["list"]) == 0
    assert "powerserve pull smollm2-135m" in capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_table_shows_name_size_type_source_and_path(
    store: ModelStore, tiny: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = StoredFile("x/Big-Q4_K_M.gguf", str(tiny), 4_700_000_000)
    store.add("big", [file], HubOrigin("owner/Big-GGUF", "main", "c0ffee"))
    assert main(["list", "-v"]) == 0
    header, big, small = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "SIZE", "TYPE", "SOURCE", "PATH"]
    source = "owner/Big-GGUF:x/Big-Q4_K_M.gguf"
    assert big.split() == ["big", "4.7", "GB", "Q4_K_M", source, str(tiny)]
    assert small.split()[0] == "tiny.Q8_0" and small.split()[-2:] == ["local", str(tiny)]


def test_show_describes_a_model_by_name_and_by_path(tiny: Path, capsys: Capture) -> None:
    for reference in ("tiny.Q8_0", str(tiny)):
        assert main(["show", reference, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["architecture"] == "qwen2"
        assert told["path"] == str(tiny)
        assert (told["layers"], told["heads"], told["kv_heads"]) == (2, 4, 2)
        assert (told["context_length"], told["vocabulary"]) == (512, MODEL.vocab_size)
        assert told["chat_template"] is True
        # 2 × (q, k, v, o, gate, up, down) + embedding + output; norms and biases stay F32
        assert told["tensor_types"] == {"Q8_0": 16, "F32": 11}
        assert told["parameters"] > MODEL.vocab_size * MODEL.embed_dim * 2


def test_show_prints_text_and_all_metadata(tiny: Path, capsys: Capture) -> None:
    assert main(["show", str(tiny), "--metadata"]) == 0
    out = capsys.readouterr().out
    assert "16 × Q8_0, 11 × F32" in out
    assert 'general.architecture = "qwen2"' in out
    assert f'tokenizer.ggml.tokens = {{"length": {MODEL.vocab_size}' in out


def test_show_does_not_fetch_anything(capsys: Capture) -> None:
    assert main(["show", "default"]) == 2
    assert "powerserve pull smollm2-135m" in capsys.readouterr().err


def test_show_of_something_else_is_one_sentence(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    assert main(["show", str(tmp_path / "x.gguf")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_rm_deletes_a_file_of_the_store(store: ModelStore, tiny: Path, capsys: Capture) -> None:
    assert main(["rm", "tiny.q8_0"]) == 0
    assert not tiny.exists()
    assert "removed tiny.Q8_0" in capsys.readouterr().out
    assert main(["rm", "tiny.q8_0"]) == 2
    assert "powerserve list" in capsys.readouterr().err


def test_the_builtin_model_is_known_by_its_alias(store: ModelStore, capsys: Capture) -> None:
    file = store.folder / f"{DEFAULT.name}.gguf"
    with file.open("wb") as content:
        content.truncate(DEFAULT.size_bytes)  # its size stands for the file
    assert main(["pull", "default"]) == 0
    assert str(file) in capsys.readouterr().out
    assert main(["list"]) == 0
    assert "Q4_1  built-in" in capsys.readouterr().out
    assert main(["rm", "default"]) == 0
    assert not file.exists()


def test_the_builtin_model_takes_no_name(capsys: Capture) -> None:
    assert main(["pull", "default", "--name", "x"]) == 2
    assert "--name" in capsys.readouterr().err
