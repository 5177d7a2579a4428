"""The tokenizer of a converted model gives the ids of the libraries that made it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from hf_tokenizers import (
    CHAT_TEMPLATE,
    PRE_TOKENIZERS,
    Encode,
    texts,
    vocab_size,
    write_byte_level,
    write_sentence_piece,
)
from powerserve.convert.vocabulary import tokenizer_metadata
from powerserve.convert.vocabulary.sentence_piece import parse_sentence_piece
from powerserve.core.errors import (
    ConfigError,
    ModelFileError,
    PowerServeError,
    TokenizerError,
    UnsupportedModelError,
)
from powerserve.tokenizer import Tokenizer
from powerserve.tokenizer.vocabulary import TokenType

WRITERS: dict[str, Callable[[Path], Encode]] = {
    **{kind: lambda folder, kind=kind: write_byte_level(folder, kind) for kind in PRE_TOKENIZERS},
    "tokenizer.model": write_sentence_piece,
    "scored merges": lambda folder: write_sentence_piece(folder, as_json=True),
}


def metadata_of(folder: Path, extra_rows: int = 0, **config: Any) -> dict[str, Any]:
    size = vocab_size(folder) + extra_rows
    return tokenizer_metadata(folder, size, config, note=lambda text: None)


@pytest.mark.parametrize("kind", WRITERS)
def test_ids_are_those_of_the_library(tmp_path: Path, kind: str) -> None:
    encode = WRITERS[kind](tmp_path)
    tokenizer = Tokenizer.from_metadata(metadata_of(tmp_path))
    for text in texts():
        assert tokenizer.encode(text) == encode(text), text


def test_the_name_of_the_pretokenizer(tmp_path: Path) -> None:
    for kind in PRE_TOKENIZERS:
        write_byte_level(tmp_path, kind)
        assert metadata_of(tmp_path)["tokenizer.ggml.pre"] == kind


@pytest.mark.parametrize("kind", ["llama-bpe", "qwen2"])
def test_whether_words_that_are_tokens_stay_whole(tmp_path: Path, kind: str) -> None:
    """The opposite of what models with this pre-tokenizer do matters only if a merge is missing."""
    encode = write_byte_level(tmp_path, kind)
    path = tmp_path / "tokenizer.json"

    def flip(data: dict[str, Any]) -> None:
        data["model"]["ignore_merges"] = not data["model"]["ignore_merges"]

    change_json(path, flip)
    metadata = metadata_of(tmp_path)
    assert metadata["tokenizer.ggml.pre"] == {"llama-bpe": "dbrx"}.get(kind, kind)
    for text in texts():
        assert Tokenizer.from_metadata(metadata).encode(text) == encode(text)
    if kind == "qwen2":
        change_json(path, lambda data: data["model"]["merges"].pop())
        with pytest.raises(UnsupportedModelError, match="ignore_merges = true"):
            metadata_of(tmp_path)


def test_added_tokens(tmp_path: Path) -> None:
    encode = write_byte_level(tmp_path)
    tokenizer = Tokenizer.from_metadata(metadata_of(tmp_path))
    text = "<|im_start|>user\nHi<|im_end|><tool_call>x</tool_call>"
    assert tokenizer.encode(text) == encode(text)
    tool, end = tokenizer.token_id("<tool_call>"), tokenizer.token_id("<|im_end|>")
    assert tool is not None
    assert end is not None
    assert tokenizer.token_bytes(tool) == b"<tool_call>"
    assert tokenizer.token_bytes(end) == b"", "a control token is no text"
    assert tokenizer.special.eos == end


def test_rows_without_token_are_padded(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    metadata = metadata_of(tmp_path, extra_rows=3)
    assert metadata["tokenizer.ggml.tokens"][-3:] == ["[PAD424]", "[PAD425]", "[PAD426]"]
    assert metadata["tokenizer.ggml.token_type"][-3:] == [TokenType.UNUSED] * 3


def test_an_added_token_without_row_is_left_out_with_a_note(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    notes: list[str] = []
    size = vocab_size(tmp_path)
    metadata = tokenizer_metadata(tmp_path, size - 1, {}, notes.append)
    assert len(metadata["tokenizer.ggml.tokens"]) == size - 1  # type: ignore[arg-type]
    assert notes == [f"leaving out the added token '<tool_call>': the model has no row {size - 1}"]


def test_a_vocabulary_larger_than_the_table_is_refused(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    with pytest.raises(ModelFileError, match="do both belong to the same model"):
        tokenizer_metadata(tmp_path, 300, {}, print)


@pytest.mark.parametrize("looks", ["<|fim_prefix|>", "<｜User｜>", "<pad>"])
def test_tokens_that_look_special_are_control_tokens(tmp_path: Path, looks: str) -> None:
    write_byte_level(tmp_path)
    change_json(
        tmp_path / "tokenizer.json",
        lambda data: data["added_tokens"].append({"id": 424, "content": looks, "special": False}),
    )
    types = metadata_of(tmp_path)["tokenizer.ggml.token_type"]
    assert types[424] == TokenType.CONTROL


def test_roles_come_from_the_tokenizer_then_from_the_model(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"pad_token_id": 7, "bos_token_id": 8}')
    metadata = metadata_of(tmp_path, bos_token_id=420, eos_token_id=[422, 421])
    assert metadata["tokenizer.ggml.bos_token_id"] == 420
    assert metadata["tokenizer.ggml.eos_token_id"] == 422
    assert metadata["tokenizer.ggml.padding_token_id"] == 7
    assert metadata["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.parametrize(("declared", "adds"), [(True, True), (False, False), (None, True)])
def test_bos_as_the_configuration_says_else_as_the_template(
    tmp_path: Path, declared: bool | None, adds: bool
) -> None:
    write_byte_level(tmp_path, "llama-bpe")
    change_json(
        tmp_path / "tokenizer_config.json", lambda data: data.update(add_bos_token=declared)
    )
    tokenizer = Tokenizer.from_metadata(metadata_of(tmp_path))
    assert (tokenizer.encode("a")[0] == tokenizer.special.bos) == adds


def test_eos_where_the_template_ends_with_it(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    edge = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, edge]}
    change_json(tmp_path / "tokenizer.json", lambda data: data.update(post_processor=template))
    tokenizer = Tokenizer.from_metadata(metadata_of(tmp_path))
    assert tokenizer.encode("a")[-1] == tokenizer.special.eos


def test_chat_templates(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    key = "tokenizer.chat_template"
    assert metadata_of(tmp_path)[key] == CHAT_TEMPLATE
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    change_json(tmp_path / "tokenizer_config.json", lambda data: data.update(chat_template=named))
    assert templates(tmp_path) == {key: "D", f"{key}.tool_use": "T", f"{key}s": ["tool_use"]}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "J"}')
    assert templates(tmp_path) == {key: "J"}
    (tmp_path / "chat_template.jinja").write_text("Ä\n", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates/rag-1.jinja").write_text("R")
    assert templates(tmp_path) == {key: "Ä\n", f"{key}.rag_1": "R", f"{key}s": ["rag_1"]}


def templates(folder: Path) -> dict[str, Any]:
    return {key: value for key, value in metadata_of(folder).items() if "chat_template" in key}


def test_sentence_piece_models_are_read_as_by_their_library(tmp_path: Path) -> None:
    write_sentence_piece(tmp_path)
    raw = (tmp_path / "tokenizer.model").read_bytes()
    library = sentencepiece.SentencePieceProcessor(model_proto=raw)
    ours = parse_sentence_piece(raw)
    assert len(ours.tokens) == library.get_piece_size() == 700
    for index, token in ours.tokens.items():
        assert token.text == library.id_to_piece(index)
        assert token.score == library.get_score(index)
        assert (token.type == TokenType.BYTE) == library.is_byte(index)
        assert (token.type == TokenType.CONTROL) == library.is_control(index)
        assert (token.type == TokenType.UNKNOWN) == library.is_unknown(index)
    assert ours.adds_space_prefix
    assert not ours.normalises


def test_damaged_sentence_piece_models_are_refused(tmp_path: Path) -> None:
    write_sentence_piece(tmp_path)
    raw = (tmp_path / "tokenizer.model").read_bytes()
    for damaged in (b"", b"no model", raw[:1000], b"\x0a\xff\xff\xff\xff\x7f", b"\x0a\x02\x10\xff"):
        with pytest.raises(PowerServeError):
            parse_sentence_piece(damaged)
    for position in range(0, len(raw), 97):
        changed = bytearray(raw)
        changed[position] ^= 0x55
        try:
            parse_sentence_piece(bytes(changed))
        except PowerServeError:
            continue


def test_merges_that_no_scores_describe_are_refused(tmp_path: Path) -> None:
    write_sentence_piece(tmp_path, as_json=True)
    path = tmp_path / "tokenizer.json"

    def move_last_merge_to_front(data: dict[str, Any]) -> None:
        merges = data["model"]["merges"]
        twice = next(i for i in range(1, len(merges)) if made(merges[i]) == made(merges[i - 1]))
        merges.insert(0, merges.pop(twice))

    change_json(path, move_last_merge_to_front)
    with pytest.raises(UnsupportedModelError, match="do not follow from scores"):
        metadata_of(tmp_path)
    write_sentence_piece(tmp_path, as_json=True)
    change_json(path, lambda data: data["model"]["merges"].pop())
    with pytest.raises(UnsupportedModelError, match="put the model's tokenizer"):
        metadata_of(tmp_path)


def made(merge: str | list[str]) -> str:
    return "".join(merge.split(" ") if isinstance(merge, str) else merge)


@pytest.mark.parametrize("as_json", [False, True])
def test_types_of_sentence_piece_tokens(tmp_path: Path, as_json: bool) -> None:
    write_sentence_piece(tmp_path, as_json=as_json)
    types = metadata_of(tmp_path)["tokenizer.ggml.token_type"]
    assert types[:3] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    assert types[3:259] == [TokenType.BYTE] * 256
    assert set(types[259:]) == {TokenType.NORMAL}


def test_merges_as_texts_and_as_pairs_mean_the_same(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    before = metadata_of(tmp_path)["tokenizer.ggml.merges"]

    def as_texts(data: dict[str, Any]) -> None:
        assert isinstance(data["model"]["merges"][0], list)
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    change_json(tmp_path / "tokenizer.json", as_texts)
    assert metadata_of(tmp_path)["tokenizer.ggml.merges"] == before


def test_a_byte_level_file_comes_before_a_foreign_tokenizer_model(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")  # Llama 3's is of this kind
    assert metadata_of(tmp_path)["tokenizer.ggml.model"] == "gpt2"


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}, UnsupportedModelError, "Unigram"),
        ({"normalizer": {"type": [7]}}, UnsupportedModelError, "the normalizer"),
        ({"normalizer": {"type": "NFKC"}}, UnsupportedModelError, "the normalizer NFKC"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a"]]}}, ConfigError, "is not a pair"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a b", "c"]]}}, TokenizerError, "spaces"),
        ({"model": {"vocab": {"a": -1}, "merges": []}}, ModelFileError, "same model"),
        ({"model": 7}, ConfigError, "the key `model` is wrong"),
        ({"added_tokens": [{"content": "x"}]}, ConfigError, "`added_tokens"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [7]}},
            ConfigError,
            "not a list of obj",
        ),
    ],
)
def test_what_a_gguf_file_cannot_express_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[PowerServeError], complaint: str
) -> None:
    write_byte_level(tmp_path)
    size = vocab_size(tmp_path)
    change_json(tmp_path / "tokenizer.json", lambda data: data.update(change))
    with pytest.raises(error, match=complaint):
        tokenizer_metadata(tmp_path, size, {}, print)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has neither tokenizer"):
        tokenizer_metadata(tmp_path, 10, {}, print)


def test_the_library_agrees_with_the_test_files(tmp_path: Path) -> None:
    """The json made from the SentencePiece model is one that the library reads alike."""
    encode = write_sentence_piece(tmp_path, as_json=True)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in texts():
        if text:
            assert library.encode(text).ids == encode(text), text


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
