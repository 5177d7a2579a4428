"""Prompts, grammars and parsers, by what a model's template says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from powerserve.core.errors import TemplateError, UsageError
from powerserve.engine.loader import LoadedEngine, load_engine
from powerserve.sampler.grammar import Grammar, GrammarKind
from powerserve.server.content import Content
from powerserve.server.preparation import Preparation, prepare
from powerserve.server.request import ChatPrompt, GenerationRequest, TextPrompt, Tools, ToolUse
from powerserve.server.tool_calls import ToolDefinition
from powerserve.storage.resolve import resolve_model
from powerserve.tokenizer.chat import ChatTemplate
from tiny_models import write_tiny_model

TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
THINKS = TURNS + "{{ '<think>\\n' }}"
CALLS = "{% for t in tools %}{{ t.function.name }} {% endfor %}<tool_call>" + TURNS
MESSAGES = [{"role": "user", "content": "hello"}]
TOOLS = Tools([ToolDefinition("get_time")])
YES_OR_NO = Grammar(GrammarKind.REGEX, "yes|no")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedEngine]:
    path: Path = write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")
    engine = load_engine(resolve_model(path))
    yield engine
    engine.close()


def prepared(
    loaded: LoadedEngine, template: str, tools: Tools = TOOLS, grammar: Grammar | None = None
) -> tuple[str, Preparation]:
    """What a conversation comes to with another template: the prompt, and all of it."""
    loaded.template = ChatTemplate(template, loaded.tokenizer)
    request = GenerationRequest("", [ChatPrompt(MESSAGES, tools)], grammar=grammar)
    preparation = prepare(loaded, request, None)
    return loaded.tokenizer.decode(preparation.tasks[0].prompt), preparation


def read(preparation: Preparation, text: str) -> Content:
    """All that the parser makes of an answer, fed letter by letter."""
    parser = preparation.parsers[0]
    parts = [*map(parser.feed, text), parser.finish()]
    return Content(
        "".join(part.text for part in parts),
        "".join(part.reasoning for part in parts),
        tuple(call for part in parts for call in part.tool_calls),
    )


def test_reasoning_that_the_prompt_opens(loaded: LoadedEngine) -> None:
    prompt, preparation = prepared(loaded, THINKS, Tools())
    assert prompt.endswith("<think>\n")
    assert read(preparation, "hm</think>yes") == Content("yes", "hm")


@pytest.mark.parametrize(
    ("template", "end"),
    [(TURNS, "assistant:Once upon"), (THINKS, "<think>\n</think>\n\nOnce upon")],
)
def test_the_beginning_of_an_answer_stands_behind_reasoning(
    loaded: LoadedEngine, template: str, end: str
) -> None:
    loaded.template = ChatTemplate(template, loaded.tokenizer)
    prompt = ChatPrompt(MESSAGES, prefill="Once upon")
    preparation = prepare(loaded, GenerationRequest("", [prompt]), None)
    assert loaded.tokenizer.decode(preparation.tasks[0].prompt).endswith(end)
    assert read(preparation, " a time") == Content(" a time")


def test_a_grammar_leaves_no_room_for_reasoning(loaded: LoadedEngine) -> None:
    prompt, preparation = prepared(loaded, THINKS, Tools(), YES_OR_NO)
    assert prompt.endswith("<think>\n</think>\n\n")
    assert read(preparation, "yes") == Content("yes")
    assert preparation.tasks[0].constraint is not None


def test_a_grammar_waits_for_the_end_of_reasoning(
    loaded: LoadedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tags are tokens: here those of “!” and of a double quote stand for them."""
    opening, closing = (loaded.tokenizer.encode(text)[0] for text in ("!", '"'))
    tags = {"<think>": opening, "</think>": closing}
    monkeypatch.setattr(loaded.tokenizer, "token_id", tags.get)
    prompt, preparation = prepared(loaded, THINKS, Tools(), YES_OR_NO)
    assert prompt.endswith("<think>\n")
    constraint = preparation.tasks[0].constraint
    assert constraint is not None and constraint.allowed() is None
    constraint.accept(closing)
    assert constraint.allowed() is not None
    assert preparation.tasks[0].visible == {opening, closing}


def test_a_template_that_knows_tools_gets_them(loaded: LoadedEngine) -> None:
    prompt, preparation = prepared(loaded, CALLS)
    assert prompt.startswith("get_time ")
    call = '<tool_call>{"name": "get_time", "arguments": {}}</tool_call>'
    content = read(preparation, f"Let me see. {call}")
    assert content.text.strip() == "Let me see."
    assert [each.name for each in content.tool_calls if each.name] == ["get_time"]


def test_other_templates_get_them_in_words(loaded: LoadedEngine) -> None:
    prompt, preparation = prepared(loaded, TURNS)
    assert prompt.startswith("system: You can call these functions") and "get_time" in prompt
    assert read(preparation, '{"name": "get_time", "arguments": {}}').tool_calls


def test_tools_that_may_not_be_used_are_not_there(loaded: LoadedEngine) -> None:
    tools = Tools(TOOLS.definitions, ToolUse.NONE)
    prompt, preparation = prepared(loaded, TURNS, tools, YES_OR_NO)
    assert prompt == "user: hello\nassistant:"
    text = '{"name": "get_time", "arguments": {}}'
    assert read(preparation, text) == Content(text)


def test_every_choice_has_its_own_state(loaded: LoadedEngine) -> None:
    request = GenerationRequest(
        "", [TextPrompt("a"), TextPrompt("b")], {"seed": 7}, num_choices=2, grammar=YES_OR_NO
    )
    preparation = prepare(loaded, request, max_tokens=5)
    assert [task.params.seed for task in preparation.tasks] == [7, 8, 7, 8]
    assert len({id(task.constraint) for task in preparation.tasks}) == 4
    assert len({id(parser) for parser in preparation.parsers}) == 4
    assert {task.params.max_tokens for task in preparation.tasks} == {5}


def test_a_template_that_never_ends_is_stopped(loaded: LoadedEngine) -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="too much"):
        prepared(loaded, loops + TURNS)


def test_tools_and_a_form_of_the_answer_go_together_where_calls_have_tags(
    loaded: LoadedEngine,
) -> None:
    _, preparation = prepared(loaded, CALLS, TOOLS, Grammar(GrammarKind.JSON_OBJECT))
    answers = ("{}", '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>')
    for text in answers:
        constraint = preparation.tasks[0].constraint
        assert constraint is not None
        branch = constraint.copy()
        for token_id in loaded.tokenizer.encode_inner(text):
            branch.accept(token_id)
        assert branch.is_complete
    with pytest.raises(UsageError, match="exclude each other"):
        prepared(loaded, CALLS, TOOLS, YES_OR_NO)
