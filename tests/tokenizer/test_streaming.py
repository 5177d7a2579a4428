"""A stream of tokens gives the same text as decoding at once, and never half a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golden_vocabularies import golden_tokenizer
from powerserve.tokenizer import Tokenizer
from small_tokenizers import byte_pair_metadata


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(byte_pair_metadata())


def test_a_character_comes_out_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert [stream.feed(byte) for byte in "é€".encode()] == ["", "é", "", "", "€"]
    assert stream.finish() == ""


def test_invalid_bytes_become_replacement_characters(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert [stream.feed(byte) for byte in (0xFF, 0xC3, 0x41)] == ["\ufffd", "", "\ufffdA"]


def test_an_incomplete_tail_is_replaced_at_the_end(tokenizer: Tokenizer) -> None:
    stream = tokenizer.stream()
    assert stream.feed(0xE2) == ""
    assert stream.finish() == "\ufffd"


def test_control_tokens_are_shown_if_asked(tokenizer: Tokenizer) -> None:
    end = tokenizer.vocab_size - 1
    assert tokenizer.stream().feed(end) == ""
    assert tokenizer.stream(special=True).feed(end) == "<|im_end|>"


@given(st.sampled_from(["qwen2", "llama-spm"]), st.data())
def test_pieces_add_up_to_the_decoded_text(name: str, data: st.DataObject) -> None:
    tokenizer = golden_tokenizer(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    ids = data.draw(st.sampled_from([ids, [1, *ids]]))
    raw = b"".join(map(tokenizer.token_bytes, ids))
    stream = tokenizer.stream()
    text = "".join([*map(stream.feed, ids), stream.finish()])
    assert text == tokenizer.decode(ids)
    assert text in (raw.decode(errors="replace"), raw.removeprefix(b" ").decode(errors="replace"))


def test_control_tokens_are_shown_only_where_asked_for(tokenizer: Tokenizer) -> None:
    control = tokenizer.token_ids(["<|im_start|>", "<|endoftext|>", "no such token"])
    assert len(control) == 2 and control < tokenizer.hidden_ids
    start = tokenizer.token_id("<|im_start|>")
    assert start is not None
    ids = [65, *sorted(control), 66]
    assert "".join(map(tokenizer.stream().feed, ids)) == "AB"
    assert "".join(map(tokenizer.stream(visible={start}).feed, ids)) == "A<|im_start|>B"
