"""`convert`, `extract-embeddings` and `cos-sim` as commands, and the original's scripts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from command_line import status_of
from hf_checkpoints import TinyCheckpoint, checkpoint_weights, write_checkpoint
from hf_tokenizers import vocab_size
from powerserve.storage.gguf import GGUFFile
from safetensors_files import write_safetensors

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def types_in(path: Path) -> dict[int, set[str]]:
    """Types of tensors by their number of dimensions."""
    found: dict[int, set[str]] = {}
    for tensor in GGUFFile.open(path).tensors.values():
        found.setdefault(len(tensor.shape), set()).add(str(tensor.dtype))
    return found


@pytest.mark.parametrize(
    ("stored", "out_type", "expected"),
    [
        ("BF16", "auto", "BF16"),
        ("F16", "auto", "F16"),
        ("F32", "auto", "F16"),
        ("F16", "f32", "F32"),
        ("F32", "bf16", "BF16"),
        ("BF16", "q8_0", "Q8_0"),
    ],
)
def test_matrices_get_the_type_and_vectors_stay_exact(
    here: Path, stored: str, out_type: str, expected: str
) -> None:
    folder = write_checkpoint(here / "hf", TinyCheckpoint(dtype=stored, qkv_bias=True))
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf", "--outtype", out_type, "-q") == 0
    assert types_in(here / "m.gguf") == {1: {"F32"}, 2: {expected}}


def test_rows_that_no_block_fits_become_f16(here: Path) -> None:
    folder = write_checkpoint(here / "hf", TinyCheckpoint(ffn_dim=80))
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf", "--outtype", "q8_0", "-q") == 0
    tensors = GGUFFile.open(here / "m.gguf").tensors
    assert str(tensors["blk.0.ffn_down.weight"].dtype) == "F16"
    assert str(tensors["blk.0.ffn_up.weight"].dtype) == "Q8_0"


def test_where_the_file_goes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(here / "My Model")
    (here / "models").mkdir()
    assert status_of("convert", "hf-to-gguf", folder) == 0
    assert status_of("convert", "hf-to-gguf", folder, "models", "--outtype", "q8_0", "-q") == 0
    said = capsys.readouterr()
    assert said.out.startswith("My Model.gguf: ")
    assert "writing My Model.gguf: " in said.err
    assert GGUFFile.open(here / "My Model.gguf").metadata["general.name"] == "My Model"
    assert (here / "models/My Model-Q8_0.gguf").is_file()


def test_a_folder_of_the_hubs_cache_has_the_repositorys_name(here: Path) -> None:
    snapshot = here / "models--Qwen--Qwen3-0.6B/snapshots/0123abcd"
    write_checkpoint(snapshot)
    assert status_of("convert", "hf-to-gguf", snapshot, "-q") == 0
    assert GGUFFile.open(here / "Qwen3-0.6B.gguf").metadata["general.name"] == "Qwen3-0.6B"


def test_llama_cpps_script_and_flags(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(here / "hf")
    script = TOOLS / "convert_hf_to_gguf/convert_hf_to_gguf.py"
    flags = ("--outfile", "m.gguf", "--outtype", "f32", "--model-name", "Mine", "--embd-only")
    done = subprocess.run([sys.executable, script, folder, *flags], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    file = GGUFFile.open(here / "m.gguf")
    assert file.metadata["general.name"] == "Mine"
    assert list(file.tensors) == ["token_embd.weight"]
    assert status_of("convert", "hf-to-gguf", folder, "a.gguf", "--outfile", "b.gguf") == 2
    assert "once" in capsys.readouterr().err


def test_part_of_a_model(here: Path) -> None:
    folder = write_checkpoint(here / "hf")
    assert status_of("convert", "hf-to-gguf", folder, "v.gguf", "--vocab-only", "-q") == 0
    vocabulary = GGUFFile.open(here / "v.gguf")
    assert not vocabulary.tensors
    assert "tokenizer.chat_template" in vocabulary.metadata
    (folder / "model.safetensors").unlink()
    assert status_of("convert", "hf-to-gguf", folder, "v.gguf", "--vocab-only", "-q") == 0
    assert status_of("convert", "hf-to-gguf", folder, "v.gguf", "--only-embed", "-q") == 2


@pytest.mark.parametrize(
    ("changes", "context_length"),
    [
        ({"sliding_window": 128}, 128),
        ({"sliding_window": 4096}, 512),
        ({"sliding_window": 128, "use_sliding_window": False}, 512),
        ({"sliding_window": None}, 512),
    ],
)
def test_a_window_of_attention_limits_the_context(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, int | None],
    context_length: int,
) -> None:
    folder = write_checkpoint(here / "hf", TinyCheckpoint(changes=changes))
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf") == 0
    assert GGUFFile.open(here / "m.gguf").metadata["llama.context_length"] == context_length
    assert ("limited to 128 tokens" in capsys.readouterr().err) == (context_length == 128)


def test_transformers_5_keeps_rope_settings_together(here: Path) -> None:
    changes = {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}
    folder = write_checkpoint(here / "hf", TinyCheckpoint(changes=changes))
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf", "-q") == 0
    assert GGUFFile.open(here / "m.gguf").metadata["llama.rope.freq_base"] == 5e5


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "language_model.model.tok_embeddings.weight"]
)
@pytest.mark.parametrize("out_type", [None, "q8_0"])
def test_embeddings_of_a_vision_language_model(
    tmp_path: Path, name: str, out_type: str | None
) -> None:
    """Through the original's script; the checkpoint is of an architecture we do not know."""
    table = np.random.default_rng(0).normal(size=(100, 64)).astype(np.float32)
    weights = {"visual.patch_embed.proj.weight": np.ones((3, 2, 2), np.float32), name: table}
    write_safetensors(tmp_path / "model.safetensors", weights)
    script = TOOLS / "extract_embd_from_vl/main.py"
    flags = ["--model-path", tmp_path, "--out-path", tmp_path / "e.gguf"]
    flags += ["--out-type", out_type] if out_type else []  # type: ignore[list-item]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    file = GGUFFile.open(tmp_path / "e.gguf")
    assert file.metadata["general.architecture"] == "qwen2_vl"
    (tensor,) = file.tensors.values()
    assert (tensor.name, tensor.shape) == ("token_embd.weight", (100, 64))
    assert str(tensor.dtype) == (out_type or "f32").upper()
    if out_type is None:
        np.testing.assert_array_equal(tensor.data.view(np.float32), table.reshape(-1))


def test_no_embeddings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_safetensors(here / "model.safetensors", {"a": np.ones(3, np.float32)})
    flags = ("--model-path", here, "--out-path", here / "e.gguf")
    assert status_of("extract-embeddings", *flags) == 2
    assert "has no embedding table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("first", "second", "similarity"),
    [
        ("1\n0\n", "0\n1\n", "0.000000000"),
        ("1\n2\n3", "2\n4\n6\n\n", "1.000000000"),
        ("1e300\n1e300\n", "-1e-300\n-1e-300\n", "-1.000000000"),
        ("3\n4\n", "4\n3\n", "0.960000000"),
    ],
)
def test_cosine_similarity(
    here: Path, capsys: pytest.CaptureFixture[str], first: str, second: str, similarity: str
) -> None:
    (here / "a").write_text(first)
    (here / "b").write_text(second)
    assert status_of("cos-sim", "--f1", "a", "--f2", "b") == 0
    assert capsys.readouterr().out == f"cosine similarity: {similarity}\n"


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        ("1\n2\n3\n", "a has 3 numbers and b has 2"),
        ("1\nx\n", "a: line 2 is 'x', not a number"),
        ("1\nnan\n", "a: line 2 is nan"),
        ("0\n0\n", "without a number other than 0"),
        ("\xff\n", "a is not a text file"),
    ],
)
def test_lists_that_cannot_be_compared(
    here: Path, capsys: pytest.CaptureFixture[str], first: str, complaint: str
) -> None:
    (here / "a").write_text(first, encoding="latin-1")
    (here / "b").write_text("1\n2\n")
    assert status_of("cos-sim", "--f1", "a", "--f2", "b") == 2
    assert complaint in capsys.readouterr().err


def test_the_script_cos_sim(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1\n2\n")
    flags = ("--f1", tmp_path / "a", "--f2", tmp_path / "a")
    done = subprocess.run(
        [sys.executable, TOOLS / "cos_sim.py", *flags], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "cosine similarity: 1.000000000\n")


def test_the_model_is_not_replaced_by_its_description(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_checkpoint(here / "hf")
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf", "-q") == 0
    before = (here / "m.gguf").read_bytes()
    flags = ("--file-path", "m.gguf", "--target-path", here / "m.gguf")
    assert status_of("config-generator", *flags) == 2
    assert "is the model itself" in capsys.readouterr().err
    assert (here / "m.gguf").read_bytes() == before


def test_bias_rows_follow_their_matrix(here: Path) -> None:
    """Rows of a bias are permuted like those of its matrix: here each row's number is its bias."""
    checkpoint = TinyCheckpoint(qkv_bias=True, num_layers=1)
    folder = write_checkpoint(here / "hf", checkpoint)
    weights = checkpoint_weights(checkpoint, vocab_size(folder))
    assert status_of("convert", "hf-to-gguf", folder, "m.gguf", "--outtype", "f32", "-q") == 0
    tensors = GGUFFile.open(here / "m.gguf").tensors
    bias = tensors["blk.0.attn_q.bias"].data.view(np.float32)
    expected = weights["model.layers.0.self_attn.q_proj.bias"].reshape(4, 2, 8).swapaxes(1, 2)
    np.testing.assert_array_equal(bias, expected.reshape(-1))
