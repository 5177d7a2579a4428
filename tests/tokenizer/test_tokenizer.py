"""Special tokens in text, BOS and EOS, decoding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden_vocabularies import golden_tokenizer
from powerserve.core.errors import TokenizerError, UnsupportedModelError
from powerserve.tokenizer import Tokenizer
from powerserve.tokenizer.vocabulary import TokenType
from small_tokenizers import byte_pair_metadata, sentence_piece_metadata
from tiny_vocabulary import vocabulary

END_OF_TEXT, IM_START, IM_END = range(len(vocabulary()) - 3, len(vocabulary()))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(byte_pair_metadata())


def test_special_tokens_are_parsed_only_if_asked(tokenizer: Tokenizer) -> None:
    text = "hello<|im_end|> world"
    parsed = tokenizer.encode(text)
    assert parsed == [*tokenizer.encode("hello"), IM_END, *tokenizer.encode(" world")]
    plain = tokenizer.encode(text, parse_special=False)
    assert IM_END not in plain
    assert tokenizer.decode(plain) == text


def test_control_tokens_are_shown_only_if_asked(tokenizer: Tokenizer) -> None:
    ids = [IM_START, *tokenizer.encode("hello"), IM_END]
    assert tokenizer.decode(ids) == "hello"
    assert tokenizer.decode(ids, special=True) == "<|im_start|>hello<|im_end|>"
    assert tokenizer.token_bytes(IM_END) == b""
    assert tokenizer.token_bytes(IM_END, special=True) == b"<|im_end|>"
    assert tokenizer.token_text(IM_END) == "<|im_end|>"
    assert tokenizer.token_id("<|im_end|>") == IM_END
    assert tokenizer.token_id("<|no|>") is None


def test_user_defined_tokens_are_always_parsed_and_shown() -> None:
    metadata = byte_pair_metadata()
    metadata["tokenizer.ggml.token_type"][IM_START] = TokenType.USER_DEFINED
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.encode("<|im_start|>", parse_special=False) == [IM_START]
    assert tokenizer.decode([IM_START]) == "<|im_start|>"


def test_the_longest_special_token_wins() -> None:
    texts = [*vocabulary(), "<x>", "<x><y>", "  "]
    types = np.full(len(texts), TokenType.NORMAL, np.int32)
    types[-3:] = TokenType.USER_DEFINED
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(tokens=texts, token_type=types))
    short, long, spaces = range(len(texts) - 3, len(texts))
    assert tokenizer.encode("<x><y>") == [long]
    assert tokenizer.encode("<x><x><y>   ")[:3] == [short, long, spaces]


def test_a_token_that_ends_a_turn_is_hidden_whatever_its_type() -> None:
    metadata = byte_pair_metadata(token_type=None, eot_token_id=IM_END)
    assert Tokenizer.from_metadata(metadata).decode([IM_END]) == ""


def test_bos_and_eos_are_added_where_the_model_asks() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(add_bos_token=True, add_eos_token=True))
    body = tokenizer.encode("hello", add_special=False)
    assert tokenizer.encode("hello") == [END_OF_TEXT, *body, IM_END]
    assert END_OF_TEXT not in body


def test_a_rendered_chat_gets_bos_exactly_once() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata(add_bos_token=True, add_eos_token=True))
    with_bos = [END_OF_TEXT, *tokenizer.encode("hello", add_special=False)]
    assert tokenizer.encode_chat("hello") == with_bos
    assert tokenizer.encode_chat("<|endoftext|>hello") == with_bos
    without = Tokenizer.from_metadata(byte_pair_metadata())
    assert without.encode_chat("hello") == with_bos[1:]


def test_llama3_adds_bos_by_default_and_metadata_can_forbid_it() -> None:
    assert Tokenizer.from_metadata(byte_pair_metadata(pre="llama-bpe")).special.add_bos
    forbidden = byte_pair_metadata(pre="llama-bpe", add_bos_token=False)
    assert not Tokenizer.from_metadata(forbidden).special.add_bos
    nameless = byte_pair_metadata(pre="llama-bpe", bos_token_id=None)
    assert not Tokenizer.from_metadata(nameless).special.add_bos


def test_end_of_turn_is_found_by_text_in_a_fixed_order() -> None:
    tokenizer = Tokenizer.from_metadata(byte_pair_metadata())
    assert tokenizer.special.eot == IM_END, "<|im_end|> comes before <|endoftext|>"
    assert tokenizer.stop_ids == {END_OF_TEXT, IM_END}
    given_one = Tokenizer.from_metadata(byte_pair_metadata(eot_token_id=IM_START))
    assert given_one.special.eot == IM_START


def test_lone_surrogates_become_replacement_characters(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"


@given(st.text())
def test_any_text_survives(text: str) -> None:
    tokenizer = golden_tokenizer("qwen2")
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == clean


def test_ids_outside_the_vocabulary_are_an_error(tokenizer: Tokenizer) -> None:
    for token_id in (-1, tokenizer.vocab_size):
        with pytest.raises(TokenizerError, match="there is no token"):
            tokenizer.decode([token_id])
        with pytest.raises(TokenizerError, match="there is no token"):
            tokenizer.token_text(token_id)


def test_unknown_kinds_are_unsupported() -> None:
    for kind in ("bert", "t5", "rwkv"):
        with pytest.raises(UnsupportedModelError, match=kind):
            Tokenizer.from_metadata(byte_pair_metadata(model=kind))
    with pytest.raises(UnsupportedModelError, match=r"“nonsense”.*qwen2"):
        Tokenizer.from_metadata(byte_pair_metadata(pre="nonsense"))
    with pytest.raises(TokenizerError, match="no tokenizer"):
        Tokenizer.from_metadata({})


def test_sentence_piece_adds_a_space_after_every_special_token() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata())
    texts = [tokenizer.token_text(token) for token in tokenizer.encode("ab</s>ab")]
    assert texts == ["<s>", "▁ab", "</s>", "▁ab"]
    bare = Tokenizer.from_metadata(sentence_piece_metadata(add_space_prefix=False))
    assert bare.decode(bare.encode("ab", add_special=False)) == "ab"


def test_sentence_piece_drops_the_added_space_only_at_the_start_of_a_text() -> None:
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata())
    ids = tokenizer.encode("ab")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids[1:]) == " ab", "a continuation keeps its space"
    assert tokenizer.decode(tokenizer.encode("  ab")) == "  ab"


def test_text_from_the_middle_gets_nothing_around_it() -> None:
    """A SentencePiece vocabulary puts a space before a text, and BOS before that."""
    tokenizer = Tokenizer.from_metadata(sentence_piece_metadata())
    assert tokenizer.decode(tokenizer.encode_inner("ab <s>")) == "ab <s>"
    assert tokenizer.special.bos not in tokenizer.encode_inner("<s>ab")
    assert tokenizer.encode("ab") != tokenizer.encode_inner("ab")
