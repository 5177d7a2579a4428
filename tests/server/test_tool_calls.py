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
    DEEPSEEK,
    DEEPSEEK_V31,
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    MISTRAL_NAMED,
    QWEN3_CODER,
    ToolCallFormat,
    ToolDefinition,
)

FORMATS = [HERMES, LLAMA3, GENERIC, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_V31, QWEN3_CODER]
NUMBERS = {"properties": {"a": {"type": "integer"}, "b": {"type": ["object", "null"]}}}
TOOLS = [ToolDefinition("get_weather"), ToolDefinition("add", NUMBERS), ToolDefinition("now")]
PARIS = '{"city": "Paris"}'
ROME = '{"city": "Rome"}'
HERMES_PARIS = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
HERMES_ROME = HERMES_PARIS.replace("Paris", "Rome")
LLAMA_PARIS = f'{{"name": "get_weather", "parameters": {PARIS}}}'
LLAMA_ROME = LLAMA_PARIS.replace("Paris", "Rome")

LIST_PARIS = f'{{"name": "get_weather", "arguments": {PARIS}}}'
LIST_ROME = LIST_PARIS.replace("Paris", "Rome")
R1_HEAD = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
R1_PARIS = f"{R1_HEAD}{PARIS}\n```<｜tool▁call▁end｜>"
V31_PARIS = f"<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{PARIS}<｜tool▁call▁end｜>"
CODER_PARIS = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n"
    "</tool_call>"
)
CODE = 'if a < b:\n    print("</p>")\n'
CODER_CODE = CODER_PARIS.replace("Paris", CODE)

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
    # Mistral: a list behind the word, in versions 3 and 7; names and objects in later ones.
    (MISTRAL, f"[TOOL_CALLS] [{LIST_PARIS}]", "", [("get_weather", PARIS)]),
    (MISTRAL, f"[TOOL_CALLS][{LIST_PARIS}, {LIST_ROME}]\n", "",
     [("get_weather", PARIS), ("get_weather", ROME)]),
    (MISTRAL, f"[TOOL_CALLS]get_weather{PARIS}", "", [("get_weather", PARIS)]),
    (MISTRAL_NAMED, f"Wait.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]now[ARGS]{{}}", "Wait.",
     [("get_weather", PARIS), ("now", "{}")]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]get_weather[CALL_ID]aB3dE6gH9[ARGS]{PARIS}", "",
     [("get_weather", PARIS)]),
    # DeepSeek: R1 and V3 with a block of JSON, V3.1 without.
    (DEEPSEEK, f"<｜tool▁calls▁begin｜>{R1_PARIS}<｜tool▁calls▁end｜>", "",
     [("get_weather", PARIS)]),
    (DEEPSEEK, f"Let me see.\n<｜tool▁calls▁begin｜>{R1_PARIS}\n{R1_PARIS}<｜tool▁calls▁end｜>",
     "Let me see.", [("get_weather", PARIS), ("get_weather", PARIS)]),
    (DEEPSEEK_V31, f"<｜tool▁calls▁begin｜>{V31_PARIS}{V31_PARIS}<｜tool▁calls▁end｜>", "",
     [("get_weather", PARIS), ("get_weather", PARIS)]),
    (DEEPSEEK_V31, f"<｜tool▁calls▁begin｜>{V31_PARIS}", "", [("get_weather", PARIS)]),
    # Qwen3-Coder: elements, whose types are those of the schema.
    (QWEN3_CODER, CODER_PARIS, "", [("get_weather", PARIS)]),
    (QWEN3_CODER, f"I look.\n{CODER_PARIS}\n{CODER_PARIS}\n", "I look.",
     [("get_weather", PARIS), ("get_weather", PARIS)]),
    (QWEN3_CODER, CODER_PARIS.removeprefix("<tool_call>\n"), "", [("get_weather", PARIS)]),
    (QWEN3_CODER, CODER_CODE, "", [("get_weather", json.dumps({"city": CODE}))]),
    (QWEN3_CODER, "<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [("now", "{}")]),
    (QWEN3_CODER, "<tool_call>\n<function=add>\n<parameter=a>\n17\n</parameter>\n"
     '<parameter=b>\n{"c": [1]}\n</parameter>\n</function>\n</tool_call>', "",
     [("add", '{"a": 17, "b": {"c": [1]}}')]),
    (QWEN3_CODER, "<function=add><parameter=a>many</parameter><parameter=b>None</parameter>"
     "</function>", "", [("add", '{"a": "many", "b": null}')]),
    (QWEN3_CODER, "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar", "",
     [("get_weather", '{"city": "Par')]),
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
    "The word [TOOL_CALLS] and then something else.",
    "[TOOL_CALLS] [1, 2]",
    "[TOOL_CALLS]unknown_tool[ARGS]{}",
    "[TOOL_CALLS]get_weather",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>unknown_tool\n```json\n{}\n```",
    "<｜tool▁sep｜>",
    "<tool_call>\n<function=unknown_tool>\n</function>\n</tool_call>",
    "<function=",
    "<function=get_weather",
    "x <function> and <parameter=a>",
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), TRANSCRIPTS)
def test_calls_are_found(form: ToolCallFormat, text: str, content: str, calls: Calls) -> None:
    assert read_whole(form, text) == (content, calls)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
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
     "[TOOL_CALLS]", "[ARGS]", "[", "]", "get_weather", R1_PARIS, V31_PARIS, CODER_PARIS,
     "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>", "function", "<function=", "add>", "<parameter=",
     "</parameter>", "</function>", "<|python_tag|>", "<",
     '{"name": "now"}', '{"x": 1, "name": "now"}', "null"]
)  # fmt: skip
ANSWERS = st.one_of(
    st.sampled_from([text for _, text, _, _ in TRANSCRIPTS] + ORDINARY_TEXTS),
    st.lists(FRAGMENTS, max_size=8).map("".join),
)


@given(
    form=st.sampled_from(FORMATS),
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


@given(
    form=st.sampled_from(FORMATS),
    text=st.text(alphabet='{}[]"\\ <>`tol_caTOL_CAS=｜▁', max_size=40),
)
def test_without_a_tool_s_name_no_text_is_lost(form: ToolCallFormat, text: str) -> None:
    assert read(form.parser(TOOLS), list(text)) == (text, [])


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


def test_texts_in_elements_stream_and_other_values_wait() -> None:
    parser = QWEN3_CODER.parser(TOOLS)
    feeds = ["<tool_call>\n<function=add>\n<parameter=a>\n1", "7\n</parameter>\n<parameter=note>\n",
             'so "', "many\n", "lines\n</param", "eter>\n</function>"]  # fmt: skip
    parts = ["".join(delta.arguments for delta in parser.feed(piece).tool_calls) for piece in feeds]
    assert parts == ['{"a": ', '17, "note": "', 'so \\"', "many", "\\nlines", '"}']


def test_ids_for_mistral_are_those_its_templates_take() -> None:
    calls = MISTRAL.parser(TOOLS).feed(f"[TOOL_CALLS] [{LIST_PARIS}, {LIST_ROME}]").tool_calls
    ids = [delta.call_id for delta in calls if delta.name]
    assert len(set(ids)) == 2
    assert all(len(call_id) == 9 and call_id.isalnum() for call_id in ids)


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
