"""Calls of tools in the texts that models write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerserve.server.content import Content, ContentParser
from powerserve.server.tool_calls import (
    GENERIC,
    HERMES,
    LLAMA3,
    ToolCallFormat,
    ToolDefinition,
)

TOOLS = [ToolDefinition("get_weather"), ToolDefinition("add"), ToolDefinition("now")]
PARIS = '{"city": "Paris"}'
ROME = '{"city": "Rome"}'
HERMES_PARIS = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
HERMES_ROME = HERMES_PARIS.replace("Paris", "Rome")
LLAMA_PARIS = f'{{"name": "get_weather", "parameters": {PARIS}}}'
LLAMA_ROME = LLAMA_PARIS.replace("Paris", "Rome")

Calls = list[tuple[str, str]]


def read(parser: ContentParser, pieces: Sequence[str]) -> tuple[str, Calls]:
    """Text and calls of an answer that comes in these pieces."""
    contents = [*map(parser.feed, pieces), parser.finish()]
    return "".join(content.text for content in contents), joined_calls(contents)


def joined_calls(contents: Sequence[Content]) -> Calls:
    calls: list[list[str]] = []
    for delta in (delta for content in contents for delta in content.tool_calls):
        if delta.name:
            assert delta.index == len(calls) and not delta.arguments
            calls.append([delta.name, ""])
        else:
            assert delta.index == len(calls) - 1 and delta.arguments
            calls[-1][1] += delta.arguments
    return [(name, arguments) for name, arguments in calls]


def read_whole(form: ToolCallFormat, text: str) -> tuple[str, Calls]:
    return read(form.parser(TOOLS), [text])


TRANSCRIPTS: list[tuple[ToolCallFormat, str, str, Calls]] = [
    # What Qwen 2.5 and 3 write, by their templates.
    (HERMES, HERMES_PARIS, "", [("get_weather", PARIS)]),
    (HERMES, f"I will look.\n{HERMES_PARIS}", "I will look.", [("get_weather", PARIS)]),
    (
        HERMES,
        f"{HERMES_PARIS}\n{HERMES_ROME}",
        "",
        [("get_weather", PARIS), ("get_weather", ROME)],
    ),
    (HERMES, f"{HERMES_PARIS}\n\nDone.", "Done.", [("get_weather", PARIS)]),
    # What Qwen2.5-Coder writes instead.
    (
        HERMES,
        '```json\n{\n  "name": "add",\n  "arguments": {\n    "a": 17\n  }\n}\n```',
        "",
        [("add", '{\n    "a": 17\n  }')],
    ),
    # A closing tag that is missing, or too much.
    (HERMES, HERMES_PARIS.removesuffix("\n</tool_call>"), "", [("get_weather", PARIS)]),
    (HERMES, HERMES_PARIS.removeprefix("<tool_call>\n"), "", [("get_weather", PARIS)]),
    # Llama 3.1: the answer is the object; 3.2 and 3.3 may write several.
    (LLAMA3, LLAMA_PARIS, "", [("get_weather", PARIS)]),
    (LLAMA3, f"<|python_tag|>{LLAMA_PARIS}", "", [("get_weather", PARIS)]),
    (
        LLAMA3,
        f"{LLAMA_PARIS}; {LLAMA_ROME}",
        "",
        [("get_weather", PARIS), ("get_weather", ROME)],
    ),
    (
        LLAMA3,
        f'{{"type": "function", "name": "add", "parameters": {{"a": 1}}}}\n{LLAMA_PARIS}',
        "",
        [("add", '{"a": 1}'), ("get_weather", PARIS)],
    ),
    # Other orders and shapes, seen from small models.
    (GENERIC, f'{{"arguments": {PARIS}, "name": "get_weather"}}', "", [("get_weather", PARIS)]),
    (
        GENERIC,
        f'{{"type": "function", "function": {{"name": "get_weather", "arguments": {PARIS}}}}}',
        "",
        [("get_weather", PARIS)],
    ),
    (GENERIC, '{"name": "now"}', "", [("now", "{}")]),
    (GENERIC, '{"name": "now", "arguments": null}', "", [("now", "{}")]),
    (GENERIC, '{"name": "now", "arguments": {}}', "", [("now", "{}")]),
    (
        GENERIC,
        '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}"}',
        "",
        [("get_weather", PARIS)],
    ),
    (GENERIC, f'{{"name": "get_weather", "arguments": {PARIS}, "id": "1"}} ok', "ok",
     [("get_weather", PARIS)]),
    # Braces, quotes and tags inside strings.
    (
        HERMES,
        '<tool_call>\n{"name": "add", "arguments": {"a": "}\\"{ </tool_call>", "b": "\\\\"}}\n'
        "</tool_call>",
        "",
        [("add", '{"a": "}\\"{ </tool_call>", "b": "\\\\"}')],
    ),
    # The end of the tokens came first: what there is of the arguments.
    (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
]  # fmt: skip

ORDINARY_TEXTS = [
    "",
    "  \n",
    "Paris is warm.\n",
    "a < b, <tool",
    "The tag <tool_call> begins a call.",
    "<tool_call>\nnot JSON\n</tool_call>",
    '<tool_call>\n{"name": "get_weather", "arguments"\n</tool_call>',
    '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>',
    '<tool_call>\n{"name": "get_weather", "arguments": {NaN}',
    '<tool_call>\n{"name": "unknown_tool", "arguments": {}}\n</tool_call>',
    '{"answer": {"name": "add", "arguments": {}}}',
    '{"name": "Tom", "age": 3}',
    '{"name": 3, "arguments": {}}',
    '{"name": "add", "arguments": 3}',
    "{ braces }",
    "{",
    '{"na',
    "```json\n[1, 2]\n```",
    '```json\n{"a": 1}\n``` and\n\n``` more',
    "<|python_tag|>print(1)",
    f"Call it like this: {LLAMA_PARIS}",
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), TRANSCRIPTS)
def test_calls_are_found(form: ToolCallFormat, text: str, content: str, calls: Calls) -> None:
    assert read_whole(form, text) == (content, calls)


@pytest.mark.parametrize("form", [HERMES, LLAMA3, GENERIC], ids=lambda form: form.name)
@pytest.mark.parametrize("text", ORDINARY_TEXTS)
def test_what_only_looks_like_a_call_stays_text(form: ToolCallFormat, text: str) -> None:
    assert read_whole(form, text) == (text, [])


def test_a_call_after_broken_ones_is_found() -> None:
    text = f"<tool_call>\n{{broken}}\n</tool_call>\n{HERMES_PARIS}"
    content, calls = read_whole(HERMES, text)
    assert calls == [("get_weather", PARIS)]
    assert content == "<tool_call>\n{broken}\n</tool_call>"


FRAGMENTS = st.sampled_from(
    [HERMES_PARIS, LLAMA_ROME, "<tool_call>", "</tool_call>", "```json", "```", "{", "}",
     '"', "\\", " ", "\n", "; ", "hello", '{"name": "add", ', '"arguments": {', '"a": 1', "é",
     "<|python_tag|>", "<", '{"name": "now"}', '{"x": 1, "name": "now"}', "null"]
)  # fmt: skip
ANSWERS = st.one_of(
    st.sampled_from([text for _, text, _, _ in TRANSCRIPTS] + ORDINARY_TEXTS),
    st.lists(FRAGMENTS, max_size=8).map("".join),
)


@given(
    form=st.sampled_from([HERMES, LLAMA3, GENERIC]),
    text=ANSWERS,
    cuts=st.lists(st.integers(0, 200), max_size=12),
)
def test_how_an_answer_is_cut_into_pieces_does_not_matter(
    form: ToolCallFormat, text: str, cuts: list[int]
) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    whole = read_whole(form, text)
    assert read(form.parser(TOOLS), pieces) == whole
    assert read(form.parser(TOOLS), list(text)) == whole


@given(text=st.text(alphabet='{}[]"\\ <>`tol_ca', max_size=40))
def test_without_a_tool_s_name_no_text_is_lost(text: str) -> None:
    assert read(HERMES.parser(TOOLS), list(text)) == (text, [])


def test_text_streams_and_only_what_may_be_a_tag_waits() -> None:
    parser = HERMES.parser(TOOLS)
    assert [parser.feed(piece).text for piece in ("Hel", "lo <", "b> ", "you", "\n<tool_")] == [
        "Hel", "lo", " <b>", " you", "",
    ]  # fmt: skip
    assert parser.finish().text == "\n<tool_"


def test_arguments_stream_as_they_come() -> None:
    parser = HERMES.parser(TOOLS)
    feeds = ['<tool_call>\n{"name": "add", "argu', 'ments": {"a"', ": 1, ", '"b": 2}', "}\n"]
    contents = [parser.feed(piece) for piece in feeds]
    assert [content.text for content in contents] == [""] * 5
    parts = [
        [delta.name or delta.arguments for delta in content.tool_calls] for content in contents
    ]
    assert parts == [[], ["add", '{"a"'], [": 1, "], ['"b": 2}'], []]


def test_every_call_has_an_id_of_its_own() -> None:
    parser = HERMES.parser(TOOLS)
    deltas = parser.feed(f"{HERMES_PARIS}\n{HERMES_ROME}").tool_calls
    ids = [delta.call_id for delta in deltas if delta.name]
    assert len(set(ids)) == 2 and all(call_id.startswith("call_") for call_id in ids)
    other = HERMES.parser(TOOLS).feed(HERMES_PARIS).tool_calls[0].call_id
    assert other not in ids


def test_a_json_answer_of_another_shape_is_not_held_back() -> None:
    parser = LLAMA3.parser(TOOLS)
    assert parser.feed('{"answer": ').text == '{"answer":'
    assert parser.feed("42}").text == " 42}"


def test_hostile_answers_are_read_in_time() -> None:
    """Quadratic work would take minutes."""
    for text in ("{" * 100_000, '{"arguments": ' + "[" * 100_000 + "]" * 100_000 + "}"):
        parser = LLAMA3.parser(TOOLS)
        content = parser.feed(text).text + parser.finish().text
        assert content == text
    parser = HERMES.parser(TOOLS)
    deep: Any = [parser.feed(piece) for piece in ["<tool_call>{"] * 20_000]
    assert len(deep) == 20_000


def test_whole_calls_are_rewritten_as_sound_json() -> None:
    _, calls = read_whole(GENERIC, '{"parameters": {"a": "\\ud800é"}, "name": "add"}')
    calls[0][1].encode()  # no lone surrogate
    assert json.loads(calls[0][1]) == {"a": "\ud800é"}
