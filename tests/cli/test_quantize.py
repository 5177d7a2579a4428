"""`powerserve quantize` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_line import status_of
from powerserve import LLM
from powerserve.storage.gguf import GGUFFile
from powerserve.storage.progress import format_bytes
from tiny_models import TinyModel, write_tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf", TinyModel("qwen2", embed_dim=256, ffn_dim=256))


def test_the_result_is_a_model_that_runs(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.gguf"
    flags = ("--output-type", "q8_0", "--token-embedding-type", "F16", "-t", 1, "-q")
    assert status_of("quantize", source, target, "q4_k_m", *flags) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith(f"{format_bytes(target.stat().st_size)}: ")
    with GGUFFile.open(target) as model:
        assert model.metadata["general.file_type"] == 15
        assert model.tensors["output.weight"].dtype.name == "Q8_0"
        assert model.tensors["token_embd.weight"].dtype.name == "F16"
    with LLM(target) as llm:
        assert llm.generate("Hello", max_tokens=3, temperature=0).token_ids


def test_a_dry_run_tells_the_size_and_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("quantize", source, "Q8_0", "--dry-run") == 0
    planned = capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]
    assert status_of("quantize", source, tmp_path / "x.gguf", "Q8_0", "-q") == 0
    assert capsys.readouterr().out == planned


def test_an_importance_matrix_goes_from_command_to_command(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix, target = tmp_path / "m.imatrix", tmp_path / "small.gguf"
    text = "One two three four five six seven eight nine ten. " * 9
    flags = ("-c", 16, "--chunks", 2, "-q")
    assert status_of("imatrix", "-m", source, "-p", text, "-o", matrix, *flags) == 0
    assert status_of("quantize", source, target, "Q4_K_S", "--imatrix", matrix, "-q") == 0
    with GGUFFile.open(target) as model:
        assert model.metadata["quantize.imatrix.chunks_count"] == 2
    other = write_tiny_model(tmp_path / "other.gguf", TinyModel("qwen2"))
    assert status_of("quantize", other, target, "Q4_0", "--imatrix", matrix) == 2
    assert "was made for another model" in capsys.readouterr().err


def truncated(path: Path) -> Path:
    copy = path.with_name("cut.gguf")
    copy.write_bytes(path.read_bytes()[:-100])
    return copy


def test_mistakes_are_sentences(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    cases = {
        (source, target, "Q4_X"): "there is no type 'Q4_X'; choose one of F32, F16",
        (source, "Q4_0"): "name the file to write",
        (source, source, "Q4_0"): "is the model itself",
        (source, tmp_path, "Q4_0"): "is a folder; name a file in it",
        (source, tmp_path / "no" / "x", "Q4_0"): "cannot be written: No such file",
        (tmp_path / "no.gguf", target, "Q4_0"): "does not exist",
        (truncated(source), target, "Q4_0"): "the download was probably cut off",
        (source, target, "Q4_0", "--output-type", "Q9"): "no element type 'Q9'; choose one of F32",
        (source, target, "Q4_0", "--imatrix", source): "is not an importance matrix",
        (source, target, "Q4_0", "-t", 99999): "the number of threads must be 1 to 512",
    }
    for arguments, message in cases.items():
        assert status_of("quantize", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut.gguf", "tiny.gguf"]


def test_a_link_to_the_source_is_the_source(source: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.gguf"
    link.symlink_to(source)
    assert status_of("quantize", source, link, "Q4_0") == 2
    assert GGUFFile.open(source).tensors
