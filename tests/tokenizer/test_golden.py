"""Token ids equal llama.cpp's for real vocabularies."""

import json
from pathlib import Path

import pytest

from golden_vocabularies import FOLDER, NAMES, golden_cases, golden_tokenizer

GENERATION = Path(__file__).parents[1] / "reference" / "generation"


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_llama_cpp(name: str) -> None:
    tokenizer = golden_tokenizer(name)
    cases = golden_cases(name)
    assert len(cases) >= 46
    for text, ids in cases:
        assert tokenizer.encode(text, add_special=False) == ids, text


@pytest.mark.parametrize("name", NAMES)
def test_decoding_gives_the_text_back(name: str) -> None:
    tokenizer = golden_tokenizer(name)
    for text, _ in golden_cases(name):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_page_of_prose_with_smollm2() -> None:
    text = (GENERATION / "text.txt").read_text()
    expected = json.loads((GENERATION / "smollm2-135m.json").read_text())["tokens"]
    assert golden_tokenizer("smollm2").encode(text) == expected


def test_a_page_of_prose_with_qwen2() -> None:
    text = (GENERATION / "text.txt").read_text()
    expected = json.loads((FOLDER / "qwen2.text.ids.json").read_text())
    assert golden_tokenizer("qwen2").encode(text) == expected


def test_roles_of_real_models() -> None:
    llama, qwen = golden_tokenizer("llama-bpe"), golden_tokenizer("qwen2")
    assert (llama.special.bos, llama.special.eos, llama.special.eot) == (128000, 128001, 128009)
    assert llama.special.add_bos, "Llama 3 adds BOS though its file does not say so"
    assert llama.stop_ids == {128000, 128001, 128009}
    assert (qwen.special.eot, qwen.special.add_bos) == (151645, False)
    assert golden_tokenizer("llama-spm").encode("") == [1]
    assert golden_tokenizer("llama-spm").newline_id == 13
    assert golden_tokenizer("gpt-2").newline_id == 198
