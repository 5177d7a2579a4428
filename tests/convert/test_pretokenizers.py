"""The pre-tokenizers that models publish in tokenizer.json are recognised by what they do."""

from __future__ import annotations

from typing import Any

import pytest

from hf_tokenizers import LLAMA3_PATTERN, QWEN2_PATTERN
from powerserve.convert.vocabulary.pretokenizers import (
    CANDIDATES,
    PROBES,
    matching_pretokenizers,
)
from powerserve.core.errors import UnsupportedModelError
from powerserve.tokenizer.pretokenizer import pretokenizer_by_name, pretokenizer_names

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    pattern_kind = {"Regex": pattern}
    return {"type": "Split", "pattern": pattern_kind, "behavior": behavior, "invert": invert}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


# As published with Llama 3, Qwen2, GPT-2, SmolLM2, StarCoder, DeepSeek-Coder, DeepSeek-V3,
# Mistral Nemo, GPT-4o-like models and Falcon.
PUBLISHED: dict[str, tuple[dict[str, Any], bool]] = {
    "llama-bpe": (sequence(split(LLAMA3_PATTERN), BYTES), True),
    "dbrx": (sequence(split(LLAMA3_PATTERN, "Removed", invert=True), BYTES), False),
    "qwen2": (sequence(split(QWEN2_PATTERN), BYTES), False),
    "gpt-2": (GPT2, False),
    "smollm": (sequence({"type": "Digits", "individual_digits": True}, GPT2), False),
    "deepseek-coder": (
        sequence(
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            {"type": "Digits", "individual_digits": True},
            BYTES,
        ),
        False,
    ),
    "deepseek-v3": (
        sequence(
            split(r"\p{N}{1,3}"),
            split("[一-龥぀-ゟ゠-ヿ]+"),
            split(
                r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?"
                r"[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            BYTES,
        ),
        False,
    ),
    "tekken": (
        sequence(
            split(
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
                r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            BYTES,
        ),
        True,
    ),
    "falcon": (
        sequence(
            {"type": "Punctuation", "behavior": "Contiguous"},
            GPT2,
            split("[0-9][0-9][0-9]"),
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pretokenizers_are_recognised(name: str) -> None:
    component, ignore_merges = PUBLISHED[name]
    names = matching_pretokenizers(component)
    fitting = [each for each in names if pretokenizer_by_name(each).ignore_merges == ignore_merges]
    assert fitting == [name]


def test_every_known_recipe_differs_on_the_probes() -> None:
    cuts = {name: cut(name) for name in CANDIDATES}
    assert len(set(cuts.values())) == len(CANDIDATES)
    assert {cut(name) for name in pretokenizer_names()} == set(cuts.values())


def cut(name: str) -> tuple[bool, str]:
    recipe = pretokenizer_by_name(name)
    return recipe.ignore_merges, repr([recipe.split(text) for text in PROBES])


@pytest.mark.parametrize(
    ("component", "complaint"),
    [
        (sequence({"type": "Whitespace"}, BYTES), "a pre-tokenizer that is not supported"),
        (sequence(split("a", "MergedWithNext"), BYTES), "a pre-tokenizer that is not supported"),
        (sequence(split("a", [7]), BYTES), "a pre-tokenizer that is not supported"),  # type: ignore[arg-type]
        (sequence(split("a", "Removed"), BYTES), "a pre-tokenizer that is not supported"),
        (sequence(split(r"\p{Han}+"), BYTES), "a pattern that cannot be used"),
        (sequence(split(r"(a"), BYTES), "a pattern that cannot be used"),
        (sequence(split("a" * 20_001), BYTES), "a pattern of 20001 characters"),
        (sequence(split(r"\p{L}+"), BYTES), "in a way that no supported model does"),
        ({**GPT2, "add_prefix_space": True}, "puts a space before every text"),
        ({"type": "Split", "pattern": 7}, "a pre-tokenizer that is not supported"),
        ({}, "a pre-tokenizer that is not supported"),
    ],
)
def test_anything_else_is_refused(component: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        matching_pretokenizers(component)
