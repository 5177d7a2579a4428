"""Which of the known pre-tokenizers a tokenizer.json describes.

GGUF files name the recipe that cuts text into words (`tokenizer.ggml.pre`); tokenizer.json spells
it out as patterns and steps, in many ways that mean the same. So the steps are carried out on texts
on which all known recipes differ, and the recipe that cuts them alike is the one.
docs/conversion.md says why this is not done by hashes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from powerserve.convert.vocabulary.files import TOKENIZER_FILE, Component, components
from powerserve.core.errors import UnsupportedModelError
from powerserve.tokenizer.pretokenizer import pretokenizer_by_name
from powerserve.tokenizer.unicode_regex import UnicodeRegex

# One name for each recipe, as llama.cpp writes it.
CANDIDATES = (
    "llama-bpe", "qwen2", "gpt-2", "smollm", "tekken", "gpt-4o", "dbrx", "deepseek-llm",
    "deepseek-coder", "deepseek-v3", "qwen35", "falcon", "bloom", "viking", "default",
    "seed-coder", "minicpm5", "laguna", "chameleon",
)  # fmt: skip

PROBES = (
    "I'm SURE they'LL say 'Twas 12345 x 678 = 8371410; isn't it?",
    "  two  spaces,\ttabs\t\tand\n\n\nlines \n with\r\nends   \n   ",
    "camelCaseWords HTMLParser x1y2z3 snake_case __init__ $100 50% #tag @me",
    "Grüße, Ünïcödé: naïve façade, Привет мир, Ἑλλάς, հայերեն, ქართული",
    "日本語のテキスト，中文字符。한국어 글자！ عربي، ۱۲۳ हिन्दी १२३। ไทย",
    "e\u0301 combining, ½ ² ⅷ ③, “quotes” — dashes… €5 £6 ≤ ≥ → 😀😀",
    "...---!!! ((())) {}[]<>/\\|~`^*&%$#@+=  ;;  ::\n//\n/ \n",
    "<sentinel:7> IMGIMGABZ    four",
    "a\u00a0b\u2003c\u200bd\x85e   12   345",
)
_MAX_PATTERN_CHARS = 20_000
_TREATMENTS = (("Isolated", False), ("Isolated", True), ("Removed", True))
_PUNCTUATION = r"[\p{P}$+<=>^`|~]"
_DIGITS = r"\p{N}"

Cut = Callable[[str], Iterable[str]]


def matching_pretokenizers(component: Component | None) -> list[str]:
    """The values of `tokenizer.ggml.pre` that cut text as `pre_tokenizer` of a tokenizer.json does.

    Several if they differ in whether a word that is a token stays whole (`ignore_merges`). Raises
    UnsupportedModelError if the section has a step that is not known, or if no recipe fits.
    """
    steps = [_step(part) for part in components(component, "pretokenizers")]
    words = [_words(steps, text) for text in PROBES]
    names = [
        name for name in CANDIDATES if words == [*map(pretokenizer_by_name(name).split, PROBES)]
    ]
    if not names:
        raise UnsupportedModelError(
            f"{TOKENIZER_FILE} cuts text into words in a way that no supported model does; "
            "a GGUF file would tokenize wrongly"
        )
    return names


def _words(steps: list[Cut], text: str) -> list[str]:
    pieces = [text]
    for cut in steps:
        pieces = [part for piece in pieces for part in cut(piece)]
    return pieces


def _step(component: Component) -> Cut:
    match component:
        case {"type": "ByteLevel"}:
            return _byte_level(component)
        case {"type": "Split", "pattern": {"Regex": str(pattern)}}:
            _check_split(component)
            return _cutter(pattern)
        case {"type": "Split", "pattern": {"String": str(text)}}:
            _check_split(component)
            return _cutter(re.escape(text))
        case {"type": "Digits"}:
            return _cutter(_DIGITS if component.get("individual_digits") else f"{_DIGITS}+")
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return _cutter(f"{_PUNCTUATION}+")
        case {"type": "Punctuation"} if component.get("behavior", "Isolated") == "Isolated":
            return _cutter(_PUNCTUATION)
    raise _unsupported(component)


def _byte_level(component: Component) -> Cut:
    if component.get("add_prefix_space"):
        raise UnsupportedModelError(
            f"{TOKENIZER_FILE} puts a space before every text (add_prefix_space), which is not "
            "supported for byte-level tokenizers"
        )
    if not component.get("use_regex", True):
        return lambda text: (text,)
    return pretokenizer_by_name("gpt-2").split


def _check_split(component: Component) -> None:
    """Matches must become words of their own: any other treatment drops or joins them."""
    treatment = (component.get("behavior", "Isolated"), bool(component.get("invert")))
    if treatment not in _TREATMENTS:
        raise _unsupported(component)


def _cutter(pattern: str) -> Cut:
    if len(pattern) > _MAX_PATTERN_CHARS:
        raise UnsupportedModelError(f"{TOKENIZER_FILE} has a pattern of {len(pattern)} characters")
    try:
        return UnicodeRegex(pattern).pieces
    except (re.error, ValueError, RecursionError, OverflowError) as error:
        raise UnsupportedModelError(
            f"{TOKENIZER_FILE} has a pattern that cannot be used ({error}): {pattern[:100]!r}"
        ) from None


def _unsupported(component: Component) -> UnsupportedModelError:
    shown: dict[str, Any] = {key: component[key] for key in sorted(component)}
    return UnsupportedModelError(
        f"{TOKENIZER_FILE} has a pre-tokenizer that is not supported: {str(shown)[:200]}"
    )
