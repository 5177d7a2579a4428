"""Definitions of tools, and grammars that make a model call them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from powerserve import LLM, LoadOptions, SamplingParams
from powerserve.core.errors import UsageError
from powerserve.sampler import Constraint, Grammar, GrammarKind
from powerserve.sampler.grammar_compiler import GrammarCompiler
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
    select_tool,
    tool_call_format,
    tool_definitions,
    tool_instructions,
)
from powerserve.server.tool_calls.json_format import JsonCallFormat
from powerserve.tokenizer.tokenizer import Tokenizer
from small_tokenizers import byte_pair_metadata

TEMPLATES = Path(__file__).parents[1] / "reference" / "templates"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20, "format": "place"},
        "days": {"$ref": "#/$defs/days"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "days", "unit"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 7}},
}
TOOLS = tool_definitions(
    [
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER}},
        {"type": "function", "function": {"name": "now", "description": "The time."}},
    ]
)
TOKENIZER = Tokenizer.from_metadata(byte_pair_metadata())
COMPILER = GrammarCompiler(TOKENIZER)
FORMATS = [HERMES, LLAMA3, GENERIC, MISTRAL, MISTRAL_NAMED, DEEPSEEK, DEEPSEEK_V31, QWEN3_CODER]
ARGUMENTS = {"city": "Paris", "days": 2, "unit": "celsius"}


def is_forced(form: ToolCallFormat, text: str, *, parallel: bool = False) -> bool:
    """Whether `text` is an answer that the format's grammar lets a model give."""
    constraint = COMPILER.compile(form.forced_calls(TOOLS, parallel=parallel))
    for token_id in TOKENIZER.encode_inner(text):
        constraint.accept(token_id)
    return ends(constraint)


def ends(constraint: Constraint) -> bool:
    """Whether the text so far is right, and may end here."""
    try:
        mask = constraint.allowed()
    except UsageError:
        return False
    assert mask is not None
    return all(mask[stop // 32] >> (stop % 32) & 1 for stop in TOKENIZER.stop_ids)


def written_call(form: ToolCallFormat, name: str, arguments: dict[str, Any]) -> str:
    if not isinstance(form, JsonCallFormat):
        return as_elements(name, arguments)
    before = form.before_arguments.replace("NAME", name)
    return f"{before}{json.dumps(arguments)}{form.after_arguments}"


def as_elements(name: str, arguments: dict[str, Any]) -> str:
    """As Qwen3-Coder's template writes a call."""
    parameters = [f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items()]
    return f"<tool_call>\n<function={name}>\n{''.join(parameters)}</function>\n</tool_call>"


def answer_with(form: ToolCallFormat, *calls: str) -> str:
    return form.before_calls + form.between_calls.join(calls) + form.after_calls


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_forced_calls_are_what_the_parser_reads(form: ToolCallFormat) -> None:
    weather = written_call(form, "get_weather", ARGUMENTS)
    now = written_call(form, "now", {})
    assert is_forced(form, answer_with(form, weather)) and is_forced(form, answer_with(form, now))
    both = answer_with(form, weather, now)
    assert is_forced(form, both, parallel=True) and not is_forced(form, both)
    deltas = form.parser(TOOLS).feed(both).tool_calls
    assert [delta.name for delta in deltas if delta.name] == ["get_weather", "now"]


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unknown", {}),
        ("get_weather", {}),
        ("get_weather", ARGUMENTS | {"days": 8}),
        ("get_weather", ARGUMENTS | {"wind": True}),
        ("get_weather", ARGUMENTS | {"unit": "kelvin"}),
    ],
)
def test_other_calls_are_impossible(
    form: ToolCallFormat, name: str, arguments: dict[str, Any]
) -> None:
    assert not is_forced(form, answer_with(form, written_call(form, name, arguments)))


def test_arguments_that_the_schema_leaves_open_stay_open() -> None:
    def allows(parameters: dict[str, Any], arguments: dict[str, Any]) -> bool:
        tools = tool_definitions([{"function": {"name": "f", "parameters": parameters}}])
        constraint = COMPILER.compile(GENERIC.forced_calls(tools))
        for token_id in TOKENIZER.encode_inner(written_call(GENERIC, "f", arguments)):
            constraint.accept(token_id)
        return constraint.is_complete

    properties = {"a": {"type": "integer"}}
    assert not allows({"properties": properties}, {"a": 1, "b": 2})
    assert allows({"properties": properties, "additionalProperties": True}, {"a": 1, "b": 2})
    assert allows({"properties": properties, "anyOf": [{"required": ["b"]}]}, {"a": 1, "b": 2})
    assert allows({}, {"anything": [1]})


def test_an_answer_in_json_can_be_allowed_instead() -> None:
    answer = Grammar.from_schema(
        {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    )
    start = COMPILER.compile(HERMES.forced_calls(TOOLS, parallel=True, otherwise=answer))
    now = written_call(HERMES, "now", {})
    for text in (
        '{"name": "Tom"}',
        '{\n  "name": "nobody"\n}',
        now,
        f"{now}\n{now}",
    ):
        constraint = start.copy()
        for token_id in TOKENIZER.encode_inner(text):
            constraint.accept(token_id)
        assert ends(constraint), text
    for text in ('{"age": 3}', "now"):
        constraint = start.copy()
        for token_id in TOKENIZER.encode_inner(text):
            constraint.accept(token_id)
        assert not ends(constraint), text


def test_other_forms_than_json_exclude_tools() -> None:
    for grammar, reason in (
        (Grammar(GrammarKind.REGEX, "a"), "tools and a regular expression exclude each other"),
        (Grammar.from_schema("[1]"), "it has to be a JSON object"),
        (Grammar.from_schema("{"), "is not JSON"),
    ):
        with pytest.raises(UsageError, match=reason):
            HERMES.forced_calls(TOOLS, otherwise=grammar)


@pytest.mark.parametrize("form", [LLAMA3, GENERIC], ids=lambda form: form.name)
def test_answers_that_look_like_calls_exclude_tools(form: ToolCallFormat) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        form.forced_calls(TOOLS, otherwise=Grammar(GrammarKind.JSON_OBJECT))


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, LoadOptions(context_size=1024)) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("form", "temperature"),
    [
        *((form, temperature) for form in (HERMES, LLAMA3, GENERIC) for temperature in (0.0, 1.0)),
        *((form, 1.0) for form in (MISTRAL, DEEPSEEK, QWEN3_CODER)),
    ],
)
def test_a_real_model_calls_when_it_has_to(
    llm: LLM, form: ToolCallFormat, temperature: float
) -> None:
    messages = [
        {"role": "system", "content": tool_instructions(TOOLS)},
        {"role": "user", "content": "What will the weather be in Paris?"},
    ]
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=120)
    grammar = form.forced_calls([select_tool(TOOLS, "get_weather")])
    completion = llm.chat(messages, params, grammar=grammar)
    assert completion.finish_reason == "stop"
    parser = form.parser(TOOLS)
    content = parser.feed(completion.text)
    assert content.text == ""
    assert content.tool_calls[0].name == "get_weather"
    arguments = json.loads("".join(delta.arguments for delta in content.tool_calls))
    assert arguments.keys() == {"city", "days", "unit"}
    assert 1 <= arguments["days"] <= 7 and arguments["unit"] in ("celsius", "fahrenheit")


def test_the_instructions_name_every_tool_and_its_schema() -> None:
    text = tool_instructions(TOOLS)
    assert json.dumps(WEATHER) in text and "The time." in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen2.5-coder", HERMES), ("llama3.1-like", LLAMA3), ("smollm2", GENERIC)],
)
def test_the_format_follows_from_the_template(name: str, expected: ToolCallFormat) -> None:
    assert tool_call_format((TEMPLATES / f"{name}.jinja").read_text()) is expected


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("{{- '<tool_call>\\n<function=' + call.name + '>\\n' }} … '<parameter='", QWEN3_CODER),
        ("{{ '[TOOL_CALLS] [' }}{{ call.function | tojson }}", MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", MISTRAL_NAMED),
        (
            "'<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] +"
            " '\\n' + '```json'",
            DEEPSEEK,
        ),
        (
            "'<｜tool▁call▁begin｜>'+ tool['function']['name'] + '<｜tool▁sep｜>' +"
            " tool['function']['arguments']",
            DEEPSEEK_V31,
        ),
    ],
)
def test_the_format_follows_from_how_a_template_writes_calls(
    piece: str, expected: ToolCallFormat
) -> None:
    assert tool_call_format(piece) is expected


def test_forms_given_to_templates_are_those_of_openai() -> None:
    assert TOOLS[1].as_openai() == {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {}},
    }


GOOD = {"name": "f"}


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        (["f"], r"tools\[0\] must be an object"),
        ([{"type": "retrieval"}], r"tools\[0\] must be an object with the type \"function\""),
        ([{"type": "function"}], r"tools\[0\]\.function must be an object"),
        ([{"function": {}}], r"tools\[0\]\.function\.name must be 1 to 64"),
        ([{"function": {"name": "a b"}}], r"function\.name must be 1 to 64"),
        ([{"function": {"name": "x" * 65}}], r"function\.name must be 1 to 64"),
        ([{"function": GOOD | {"description": 3}}], r"description must be text"),
        ([{"function": GOOD | {"parameters": []}}], r"parameters must be a JSON schema"),
        ([{"function": GOOD | {"parameters": {"type": "array"}}}], "type \"object\""),
        ([{"function": GOOD}, {"function": GOOD}], r"tools\[1\] has the name “f” a second time"),
        ([{"function": {"name": f"f{i}"}} for i in range(129)], "129 entries"),
    ],
)  # fmt: skip
def test_wrong_definitions_are_refused_with_their_place(tools: list[Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        tool_definitions(tools)


def test_a_tool_that_is_not_there_cannot_be_chosen() -> None:
    assert select_tool(TOOLS, "now").name == "now"
    with pytest.raises(
        UsageError, match=r"“later”, which is not among the tools \(get_weather, now\)"
    ):
        select_tool(TOOLS, "later")


def test_schemas_that_cannot_be_followed_are_refused_when_compiled() -> None:
    tools = tool_definitions([{"function": {"name": "f", "parameters": {"properties": 3}}}])
    with pytest.raises(UsageError, match="grammar cannot be used"):
        COMPILER.compile(HERMES.forced_calls(tools))
