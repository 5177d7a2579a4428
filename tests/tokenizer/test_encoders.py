"""Byte-level BPE and SentencePiece on vocabularies that can be checked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.core.errors import TokenizerError
from powerserve.tokenizer import Tokenizer, merging
from powerserve.tokenizer.spm import SentencePieceEncoder
from powerserve.tokenizer.vocabulary import Vocabulary
from small_tokenizers import byte_pair_metadata, sentence_piece_metadata
from tiny_vocabulary import vocabulary


def _pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token) for token in tokenizer.encode(text, add_special=False)]


def test_merges_apply_in_order_of_rank() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata())
    assert _pieces(tokenizer, "hello world") == ["he", "ll", "o", "Ġworld"]
    assert _pieces(tokenizer, "then é") == ["t", "he", "n", "Ġ", "Ã", "©"]


def test_a_repeated_merge_keeps_its_first_rank() -> None:
    merges = ["a b", "b c", "a b"]
    texts = [*vocabulary(), "ab", "bc"]
    metadata = byte_pair_metadata(tokens=texts, merges=merges, token_type=None)
    assert _pieces(Tokenizer.from_metadata(metadata), "abc") == ["ab", "c"]


def test_ignore_merges_takes_a_whole_word_that_is_a_token() -> None:
    texts = [*vocabulary(), "zq"]
    metadata = byte_pair_metadata(tokens=texts, token_type=None)
    assert _pieces(Tokenizer.from_metadata(metadata), "zq") == ["z", "q"]
    metadata["tokenizer.ggml.pre"] = "llama-bpe"
    assert _pieces(Tokenizer.from_metadata(metadata), "zq") == ["zq"]


def test_bytes_that_the_vocabulary_lacks_are_dropped() -> None:
    texts = [text if text != "z" else "[gone]" for text in vocabulary()]
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(tokens=texts))
    assert tokenizer.decode(tokenizer.encode("azb")) == "ab"


def test_sentence_piece_joins_by_score_and_leftmost_among_equals() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata(add_space_prefix=False))
    assert _pieces(tokenizer, "abcd") == ["ab", "cd"]
    assert _pieces(tokenizer, "bcd") == ["b", "cd"]
    assert _pieces(tokenizer, "   ") == ["▁▁", "▁"]


def test_sentence_piece_falls_back_to_bytes() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata())
    assert _pieces(tokenizer, "é") == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("é\n")) == "é\n"


def test_sentence_piece_never_spells_a_control_token() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata(add_space_prefix=False))
    ids = tokenizer.encode("<s>", add_special=False, parse_special=False)
    assert [tokenizer.token_text(token) for token in ids] == ["<s", ">"]


@given(st.text(alphabet="abcd é", max_size=40))
def test_sentence_piece_word_by_word_equals_the_text_as_a_whole(text: str) -> None:
    vocabulary = Vocabulary.from_metadata(sentence_piece_metadata())
    cutting = SentencePieceEncoder(vocabulary, add_space_prefix=True, unknown_id=0)
    whole = SentencePieceEncoder(vocabulary, add_space_prefix=True, unknown_id=0)
    whole._cuts_words = False
    assert cutting._cuts_words
    assert cutting.encode(text) == whole.encode(text)


@given(st.text(alphabet="abc", max_size=60), st.dictionaries(st.text("abc"), st.integers(0, 9)))
def test_both_merge_loops_agree(text: str, ranks: dict[str, int]) -> None:
    def rank(left: str, right: str) -> float:
        return ranks.get(left + right, merging.NO_MERGE)

    by_scan = merging._merge_by_scan(list(text), rank)
    assert by_scan == merging._merge_by_heap(list(text), rank)
    assert "".join(by_scan) == text


def test_a_word_of_a_hundred_thousand_letters_is_no_trouble() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata())
    text = "hello" * 20_000
    assert len(tokenizer.encode(text)) == 20_000 * len(tokenizer.encode("hello"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, "no tokenizer.ggml.tokens"),
        ({"tokens": []}, "empty"),
        ({"tokens": [1, 2]}, "not an array of strings"),
        ({"tokens": "abc"}, "not an array of strings"),
        ({"tokens": [*vocabulary(), "a"], "token_type": None}, "'a' twice, as 97 and"),
        ({"merges": None}, "no tokenizer.ggml.merges"),
        ({"merges": ["a b", "c"]}, "not all pairs"),
        ({"token_type": [1, 2, 3]}, "3 entries for"),
        ({"token_type": ["x"]}, "not an array of numbers"),
        ({"bos_token_id": 10**6}, "bos_token_id in the model file is 1000000"),
        ({"eos_token_id": -1}, "eos_token_id in the model file is -1"),
        ({"eos_token_id": "x"}, "not a token id"),
        ({"bos_token_id": None, "add_bos_token": True}, "names no such token"),
    ],
)
def test_a_malformed_vocabulary_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_metadata(byte_pair_metadata(**changes))


def test_a_merge_of_unknown_tokens_is_reported_when_it_is_met() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(merges=["q z"]))
    assert _pieces(tokenizer, "hello") == [*"hello"]
    with pytest.raises(TokenizerError, match="merges make 'qz', which is not a token"):
        tokenizer.encode("qz")


def test_sentence_piece_needs_scores() -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.ggml\.scores"):
        Tokenizer.from_metadata(sentence_piece_metadata(scores=None))


def test_empty_tokens_are_kept_apart() -> None:
    texts = ["" if text in "zq" else text for text in vocabulary()]
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(tokens=texts))
    assert tokenizer.vocab_size == len(texts)
    assert tokenizer.token_text(texts.index("")) == f"[EMPTY_{texts.index('')}]"
