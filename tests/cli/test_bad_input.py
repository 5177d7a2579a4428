"""Everything a user can get wrong ends with one sentence and status 2, never with a traceback."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import status_of, type_in
from gguf_bytes import RawTensor, string_key, write_gguf
from model_folders import write_model_folder
from tiny_models import TinyModel, write_tiny_model
from tiny_vocabulary import CHATML, vocabulary

Capture = pytest.CaptureFixture[str]
Complaint = Callable[..., str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty POWERSERVE_HOME."""
    folder = tmp_path / "home"
    monkeypatch.setenv("POWERSERVE_HOME", str(folder))
    return folder


@pytest.fixture
def complaint(home: Path, capsys: Capture) -> Complaint:
    """Run a command that must fail, and return the sentence it fails with."""

    def run(*arguments: str | Path) -> str:
        assert status_of(*arguments) == 2
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        beginning = f"powerserve {arguments[0]}: error: "
        sentence = printed.err.splitlines()[-1]
        assert sentence.startswith(beginning)
        sentence = sentence.removeprefix(beginning)
        assert len(sentence) > 20
        assert sentence[-1] != "."
        assert not sentence[0].isupper()
        return sentence

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny.gguf")


def patched(path: Path, *replacements: tuple[str, str]) -> Path:
    """Replace bytes of a file by as many others."""
    data = path.read_bytes()
    for old, new in replacements:
        assert len(old) == len(new) and old.encode() in data
        data = data.replace(old.encode(), new.encode())
    path.write_bytes(data)
    return path


def without_template(path: Path) -> Path:
    """Also without the tokens by which a known template would be recognised."""
    return patched(
        path,
        ("tokenizer.chat_template", "tokenizer.chat_templXte"),
        ("<|im_start|>", "<|no_start|>"),
        ("<|im_end|>", "<|no_end|>"),
        ("<|endoftext|>", "<|noneoftxt|>"),
    )


class SmallTable(TinyModel):
    """A model whose embedding table has fewer rows than the vocabulary has tokens."""

    @property
    def vocab_size(self) -> int:
        return 250


def test_a_model_that_is_not_there(complaint: Complaint) -> None:
    sentence = complaint("run", "-p", "x", "-m", "nowhere.gguf")
    assert "no model answers to `nowhere.gguf`" in sentence
    assert "powerserve list" in sentence


def test_a_folder_without_a_model(complaint: Complaint, tmp_path: Path) -> None:
    assert "a folder without model.json" in complaint("run", "-p", "x", "-m", tmp_path)


def test_a_text_file_or_a_wrong_magic(complaint: Complaint, tmp_path: Path, tiny: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("These are notes.")
    assert "not a GGUF file" in complaint("run", "-p", "x", "-m", text)
    tiny.write_bytes(b"FUGG" + tiny.read_bytes()[4:])
    assert "not a GGUF file" in complaint("run", "-p", "x", "-m", tiny)
    text.write_bytes(b"")
    assert "not a GGUF file" in complaint("run", "-p", "x", "-m", text)


def test_a_file_that_was_cut_anywhere(complaint: Complaint, tiny: Path) -> None:
    data = tiny.read_bytes()
    chosen = random.Random(7)
    header = data.index(b"blk.0") + 2000
    cuts = [chosen.randrange(4, header) for _ in range(10)]
    cuts += [chosen.randrange(header, len(data) - 64) for _ in range(10)]
    for cut in cuts:
        tiny.write_bytes(data[:cut])
        sentence = complaint("run", "-p", "x", "-m", tiny)
        assert str(tiny) in sentence, f"cut at {cut}"


def test_an_unknown_architecture(complaint: Complaint, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "t.gguf", TinyModel("gemma9"))
    sentence = complaint("run", "-p", "x", "-m", path)
    assert "gemma9" in sentence and "llama" in sentence


def test_an_unknown_tensor_type(complaint: Complaint, tmp_path: Path) -> None:
    keys = [string_key("general.architecture", "llama")]
    path = write_gguf(tmp_path / "t.gguf", keys=keys, tensors=[RawTensor("a", dtype=99)])
    assert "99" in complaint("run", "-p", "x", "-m", path)


def test_a_table_too_small_for_the_vocabulary(complaint: Complaint, tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "t.gguf", SmallTable())
    sentence = complaint("run", "-p", "x", "-m", path)
    assert "299 tokens" in sentence and "[250, 64]" in sentence


def test_a_vocabulary_that_belongs_to_another_model(
    complaint: Complaint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_folder(tmp_path / "mixed")
    write_tiny_model(folder / "vocab.gguf")
    one_less = vocabulary()[:-4] + vocabulary()[-3:]
    monkeypatch.setattr("tiny_models.vocabulary", lambda: one_less)
    write_tiny_model(folder / "ggml/weights.gguf")
    sentence = complaint("run", "-p", "x", "-m", folder)
    assert "299 tokens" in sentence and "298" in sentence and "do not belong together" in sentence


def test_a_prompt_longer_than_the_context(complaint: Complaint, tiny: Path) -> None:
    sentence = complaint("run", "-p", "word " * 200, "-c", "32", "-m", tiny)
    assert "the context holds 32" in sentence and "-c" in sentence


def test_an_empty_prompt_where_no_token_is_added(
    complaint: Complaint, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the prompt is empty" in complaint("run", "-p", "", "-m", tiny)
    type_in(monkeypatch, "")
    assert "the prompt is empty" in complaint("run", "-m", tiny)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("-n", "-1"), "'-1' is not a whole number of at least 0"),
        (("-n", "many"), "'many' is not a whole number"),
        (("-t", "-1"), "at least 0"),
        (("-t", "100000"), "threads must be 1 to 512"),
        (("-b", "-2"), "at least 0"),
        (("-c", "0"), "'0' is not a whole number of at least 1"),
        (("-c", "-4"), "at least 1"),
        (("--temp", "-0.5"), "temperature must be at least 0, not -0.5"),
        (("--temp", "nan"), "temperature must be"),
        (("--top-k", "-1"), "top_k must be at least 0"),
        (("--top-p", "1.5"), "top_p must be"),
        (("--min-p", "-1"), "min_p must be"),
        (("--repeat-penalty", "0"), "repeat_penalty must be greater than 0"),
        (("--seed", "-2"), "seed must be at least 0"),
        (("--logprobs", "99"), "logprobs must be"),
        (("--logit-bias", "7"), "not TOKEN=BIAS"),
        (("--logit-bias", "99999=1"), "99999"),
        (("--stop", ""), "stop must not contain an empty string"),
        (("--poll", "101"), "poll level must be 0 to 100"),
        (("--kv-type", "q2"), "invalid choice: 'q2'"),
        (("-f", "x.txt"), "not allowed with argument -p"),
        (("--use-spec",), "needs a draft model"),
        (("--use-spec", "--draft-model", "gone"), "no model answers to `gone`"),
        (("--bogus",), "unrecognized arguments: --bogus"),
        (("--workspace-config", "w.json"), "--workspace-config needs --work-folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_flags_with_impossible_values(
    complaint: Complaint, tiny: Path, flags: tuple[str, ...], words: str
) -> None:
    assert words in complaint("run", "-p", "x", "-m", tiny, *flags)


def test_a_prompt_file_that_cannot_be_read(complaint: Complaint, tiny: Path) -> None:
    def told(file: Path) -> str:
        return complaint("run", "-f", file, "-m", tiny)

    assert "cannot be read: No such file" in told(tiny.with_name("gone.txt"))
    assert "cannot be read: Is a directory" in told(tiny.parent)
    latin = tiny.with_name("latin.txt")
    latin.write_bytes("café".encode("latin-1"))
    assert "latin.txt is not UTF-8 text" in told(latin)


def test_a_prompt_that_is_not_utf8(
    complaint: Complaint, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"caf\xe9")
    assert "standard input is not UTF-8" in complaint("run", "-m", tiny)
    assert "-p is not UTF-8" in complaint("run", "-p", "caf\udce9", "-m", tiny)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for %}", "chat template cannot be used"),
        ("{{ messages.gone.too }}", "chat template failed"),
        ("{% for i in range(10**9) %}x{% endfor %}", "chat template"),
        ("{{ raise_exception('no chats today') }}", "no chats today"),
    ],
)
def test_a_broken_template(complaint: Complaint, tiny: Path, template: str, words: str) -> None:
    patched(tiny, (CHATML, template.ljust(len(CHATML))), ("<|im_start|>", "<|no_start|>"))
    assert words in complaint("run", "--chat", "-p", "x", "-m", tiny)
    assert words in complaint("chat", "-p", "x", "-m", tiny)


def test_chatting_with_a_model_that_cannot(complaint: Complaint, tiny: Path) -> None:
    without_template(tiny)
    for arguments in (("run", "--chat"), ("run", "--system", "Be kind."), ("chat",)):
        sentence = complaint(*arguments, "-p", "x", "-m", tiny)
        assert "tiny has no chat template" in sentence


def test_a_store_that_cannot_be_written(complaint: Complaint, home: Path) -> None:
    home.write_text("a file where the folder should be")
    sentence = complaint("run", "-p", "x")
    assert "the model store" in sentence and "POWERSERVE_HOME" in sentence


def test_a_work_folder_that_is_none(complaint: Complaint, tmp_path: Path) -> None:
    assert "powerserve create" in complaint("run", "-p", "x", "-d", tmp_path)
    assert "there is no workspace folder" in complaint("run", "-p", "x", "-d", tmp_path / "gone")


def test_an_unknown_command(home: Path, capsys: Capture) -> None:
    assert status_of("walk") == 2
    assert "there is no command 'walk'" in capsys.readouterr().err
