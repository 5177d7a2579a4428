"""The `tokenizers` library, an independent implementation, gives the same words and ids."""

import unicodedata
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers

from golden_vocabularies import golden_metadata, golden_tokenizer
from powerserve.tokenizer.pretokenizer import pretokenizer_by_name, pretokenizer_names

# Unassigned characters and surrogates are left out: libraries know different Unicode versions.
# Frequent kinds of characters are drawn more often than one in 150,000.
CHARACTERS = st.one_of(
    st.sampled_from("abzABZ019 '\n\r\t.,!?-_(){}\"$+<=>^~|`\\/"),
    st.sampled_from("éÉßñǅʰªñ\u0301Жжאכ你好한ｶ４²⅓٣。、，؟€→😀\u200d\u00a0\u2003\x85\x1c\x00"),
    st.sampled_from(["'s", "'LL", "  ", "\n\n", "   ", "don't", "x1234", "\r\n"]),
    st.characters(exclude_categories=["Cs", "Cn", "Co"]),
)
TEXTS = st.lists(CHARACTERS, max_size=30).map("".join)


@pytest.mark.parametrize("name", pretokenizer_names())
@given(TEXTS)
@settings(max_examples=12, deadline=None)
def test_words_are_cut_alike(name: str, text: str) -> None:
    words = pretokenizer_by_name(name).split(text)
    assert "".join(words) == text
    assert words == [word for word, _ in _splitter(name).pre_tokenize_str(text) if word]


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe", "gpt-2", "smollm2"])
@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_ids_are_alike(name: str, text: str) -> None:
    ids = golden_tokenizer(name).encode(text, add_special=False, parse_special=False)
    assert ids == _reference(name).encode(text, add_special_tokens=False).ids
    if name != "smollm2":  # has no tokens for some control characters, which are dropped
        assert golden_tokenizer(name).decode(ids) == text


def test_the_characters_drawn_cover_all_classes() -> None:
    drawn = "éÉßñǅʰªñ\u0301Жжאכ你好한ｶ４²⅓٣。、，؟€→😀\u200d\u00a0\u2003\x85\x1c\x00"
    classes = {unicodedata.category(character)[0] for character in drawn}
    assert classes == set("LMNPSZC")


@cache
def _splitter(name: str) -> pre_tokenizers.PreTokenizer:
    patterns = pretokenizer_by_name(name).patterns
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence(splits)


@cache
def _reference(name: str) -> tokenizers.Tokenizer:
    metadata = golden_metadata(name)
    recipe = metadata["tokenizer.ggml.pre"]
    texts = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    ignore_merges = pretokenizer_by_name(recipe).ignore_merges
    vocabulary = {text: index for index, text in enumerate(texts)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_splitter(recipe), spell])
    return tokenizer
