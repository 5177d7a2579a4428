"""Telling reasoning from answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.server.content import ContentParser, PlainText
from powerserve.server.reasoning import ReasoningParser, can_reason, opens_reasoning
from powerserve.server.tool_calls import HERMES, ToolDefinition

TEMPLATES = Path(__file__).parents[1] / "reference" / "templates"


def read(parser: ContentParser, pieces: Sequence[str]) -> tuple[str, str]:
    """Reasoning and text of an answer that comes in these pieces."""
    contents = [*map(parser.feed, pieces), parser.finish()]
    return (
        "".join(content.reasoning for content in contents),
        "".join(content.text for content in contents),
    )


CASES = [
    # Qwen3; with thinking switched off its template closes the tag in the prompt.
    (False, "<think>\nTwo and two.\n</think>\n\nFour.", ("Two and two.", "Four.")),
    (False, "Four.", ("", "Four.")),
    (False, "<think>\n\n</think>\n\nFour.", ("", "Four.")),
    # DeepSeek-R1: the template opens the tag; some quantisations write it once more.
    (True, "Two and two.\n</think>\n\nFour.", ("Two and two.", "Four.")),
    (True, "<think>\nTwo and two.</think>Four.", ("Two and two.", "Four.")),
    # No end of the reasoning, as the tokens ended first.
    (False, "<think>Two and", ("Two and", "")),
    (True, "Two and </thi", ("Two and </thi", "")),
    (True, "", ("", "")),
    # Tags elsewhere are text, as when the talk is of HTML.
    (False, "Write <think> and </think>.", ("", "Write <think> and </think>.")),
    (False, "<think>a</think>b <think>c</think>", ("a", "b <think>c</think>")),
    (False, "<think>a <think> b</think>c", ("a <think> b", "c")),
    (False, "  <thin", ("", "  <thin")),
    (False, " text\n", ("", " text\n")),
]  # fmt: skip


@pytest.mark.parametrize(("inside", "text", "expected"), CASES)
def test_reasoning_and_answer_are_told_apart(
    inside: bool, text: str, expected: tuple[str, str]
) -> None:
    assert read(ReasoningParser(PlainText(), starts_inside=inside), [text]) == expected


FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "b c", "</thin", "é"]
)


@given(
    inside=st.booleans(),
    text=st.one_of(
        st.sampled_from([text for _, text, _ in CASES]),
        st.lists(FRAGMENTS, max_size=10).map("".join),
    ),
    cuts=st.lists(st.integers(0, 60), max_size=8),
)
def test_how_an_answer_is_cut_into_pieces_does_not_matter(
    inside: bool, text: str, cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    whole = read(ReasoningParser(PlainText(), starts_inside=inside), [text])
    assert read(ReasoningParser(PlainText(), starts_inside=inside), pieces) == whole
    assert read(ReasoningParser(PlainText(), starts_inside=inside), list(text)) == whole


def test_reasoning_streams() -> None:
    parser = ReasoningParser(PlainText())
    reasoning = [parser.feed(piece).reasoning for piece in ("<think>", "\nOne", " <", "two", "\n")]
    assert reasoning == ["", "One", "", " <two", ""]
    assert parser.feed("</think>\n").reasoning == ""
    assert parser.feed("\nHi").text == "Hi"


def test_calls_after_reasoning_are_found_but_not_those_in_it() -> None:
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    parser = ReasoningParser(HERMES.parser([ToolDefinition("now")]))
    content = parser.feed(f"<think>I could {call}</think>\n\n{call}")
    assert content.reasoning == f"I could {call}"
    assert [delta.name or delta.arguments for delta in content.tool_calls] == ["now", "{}"]
    assert content.text + parser.finish().text == ""


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("<｜User｜>Hi<｜Assistant｜><think>\n", True),
        ("<|im_start|>assistant\n<think>", True),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", False),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", False),
    ],
)
def test_the_end_of_the_prompt_says_where_the_output_begins(prompt: str, expected: bool) -> None:
    assert opens_reasoning(prompt) is expected


@pytest.mark.parametrize(
    ("name", "expected"), [("deepseek-r1-like", True), ("qwen2.5-coder", False), ("smollm2", False)]
)
def test_templates_tell_whether_a_model_reasons(name: str, expected: bool) -> None:
    assert can_reason((TEMPLATES / f"{name}.jinja").read_text()) is expected
