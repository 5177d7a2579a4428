"""Prompts rendered from chat templates, compared with strings written by hand."""

import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest

from conversations import CONVERSATION, TEMPLATES
from powerserve.core.errors import TemplateError
from powerserve.tokenizer import ChatTemplate, Tokenizer
from small_tokenizers import byte_pair_metadata
from tiny_vocabulary import vocabulary

WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"city": "Zürich <b> 'x'"}},
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
    ],
}


def _tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer.from_metadata(byte_pair_metadata(**changes))


def _template(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, _tokenizer(), **options)


def _file(name: str, **options: Any) -> ChatTemplate:
    return _template((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), **options)


def test_smollm2_adds_its_system_prompt() -> None:
    assert _file("smollm2").render(CONVERSATION[1:2]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen2_5_coder_over_several_turns() -> None:
    assert _file("qwen2.5-coder").render(CONVERSATION, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    )


def test_templates_that_join_texts_get_arguments_as_text() -> None:
    """As DeepSeek's, which know a call by its missing content as well."""
    source = (
        "{% for message in messages %}{% for tool in message['tool_calls'] %}"
        "{{ '<call>' + tool['function']['name'] + '\\n' + tool['function']['arguments'] + '\\n' }}"
        "{% endfor %}{% if message['content'] is none %}(none){% endif %}{% endfor %}"
    )
    as_value = {"function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    for call in (CALL, CALL | {"content": "", "tool_calls": [as_value]}):
        assert _template(source).render([call]) == '<call>weather\n{"city": "Zürich"}\n(none)'
    filtered = source.replace("['arguments'] +", "['arguments'] | tojson +")
    assert _template(filtered).render([CALL]) == '<call>weather\n{"city": "Zürich"}\n(none)'


def test_qwen2_5_coder_with_tools() -> None:
    messages = [CONVERSATION[1], CALL, {"role": "tool", "content": "sunny"}]
    assert _file("qwen2.5-coder").render(messages, tools=[WEATHER]) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "parameters": '
        '{"city": "Zürich <b> \'x\'"}}}'
        "\n</tools>\n\nFor each function call, return a json object with function name and "
        "arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_llama_3_1_writes_bos_and_the_date() -> None:
    template = _file("llama3.1-like", now=lambda: datetime(2025, 3, 9))
    assert template.render(CONVERSATION[:2]) == (
        "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 09 Mar 2025\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama_3_1_with_tools() -> None:
    template = _file("llama3.1-like")
    tool = {"name": "f", "list": [1, 2]}
    messages = [CONVERSATION[1], CALL, {"role": "tool", "content": {"sky": "blau ☀"}}]
    assert template.render(messages, tools=[tool], date_string="26 Jul 2024") == (
        "<|endoftext|><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnswer with JSON calls of these functions.\n\n"
        '{\n    "name": "f",\n    "list": [\n        1,\n        2\n    ]\n}\n\nHi<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "weather", "parameters": {"city": "Zürich"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n{"sky": "blau ☀"}<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_llama_3_1_refuses_two_calls_at_once_with_its_own_words() -> None:
    twice = {**CALL, "tool_calls": CALL["tool_calls"] * 2}
    with pytest.raises(TemplateError, match=r"conversation: This model only supports single tool"):
        _file("llama3.1-like").render([CONVERSATION[1], twice])


def test_deepseek_r1_forgets_earlier_thoughts() -> None:
    thinking = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"}
    messages = [CONVERSATION[0], CONVERSATION[1], thinking, CONVERSATION[3]]
    assert _file("deepseek-r1-like").render(messages) == (
        "<|endoftext|>Be brief.<｜User｜>Hi<｜Assistant｜>\n\nHello!<｜end▁of▁sentence｜>"
        "<｜User｜>Bye<｜Assistant｜><think>\n"
    )


def test_variables_reach_the_template() -> None:
    template = _template("{{ 'think' if enable_thinking else 'answer' }}{{ eos_token }}")
    assert template.render([], enable_thinking=True) == "think<|im_end|>"
    assert template.render([]) == "answer<|im_end|>"


def test_settings_are_those_of_hugging_face() -> None:
    source = (
        "{% for m in messages %}\n    {% if loop.index0 == 2 %}\n{% break %}{% endif %}\n"
        "{% generation %}{{ m.content }};{% endgeneration %}{% endfor %}\n{{ x | default('-') }}"
    )
    assert _template(source).render(CONVERSATION) == "Be brief.;Hi;-"


def test_a_second_template_for_tools() -> None:
    metadata = byte_pair_metadata() | {
        "tokenizer.chat_template": "plain",
        "tokenizer.chat_template.tool_use": "{{ tools | length }} tools",
    }
    template = ChatTemplate.from_metadata(metadata, Tokenizer.from_metadata(metadata))
    assert template is not None
    assert template.uses_tools
    assert template.render(CONVERSATION) == "plain"
    assert template.render(CONVERSATION, tools=[WEATHER]) == "1 tools"


def test_encode_does_not_double_bos() -> None:
    tokenizer = _tokenizer(add_bos_token=True)
    bos = tokenizer.special.bos
    for source in ("{{ bos_token }}hi", "hi"):
        ids = ChatTemplate(source, tokenizer).encode([])
        assert ids == [bos, *tokenizer.encode("hi", add_special=False)]


def test_a_file_without_template_gets_the_format_of_its_tokens() -> None:
    metadata = byte_pair_metadata()
    template = ChatTemplate.from_metadata(metadata, Tokenizer.from_metadata(metadata))
    assert template is not None
    assert template.render(CONVERSATION[1:2]).startswith("<|im_start|>user\nHi<|im_end|>\n<|im_s")
    base = byte_pair_metadata(tokens=list(vocabulary()[:-2]), token_type=None, eos_token_id=None)
    assert ChatTemplate.from_metadata(base, Tokenizer.from_metadata(base)) is None


def test_a_template_that_cannot_be_compiled_is_replaced_by_a_known_one() -> None:
    broken = _template("{% for m in messages %}{{ '<start_of_turn>' ")
    assert broken.render(CONVERSATION[1:2]) == (
        "<|endoftext|><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for x in %}", "cannot be used: Expected an expression"),
        ("{{ x | no_such_filter }}", "cannot be used: No filter named 'no_such_filter'"),
        ("{{ messages.a.b }}", r"failed: 'list object' has no attribute 'a'"),
        ("{{ 1 // 0 }}", "failed: .*zero"),
        ("{% include 'x' %}", "failed: no loader"),
        ("x" * 200_000, "longer than 131,072 characters"),
    ],
)
def test_a_broken_template_is_an_error_with_a_reason(source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        _template(source).render(CONVERSATION)


def test_only_plain_data_enters_a_template() -> None:
    class Message(dict[str, object]):
        secret = "x"

    message: Mapping[str, object] = Message(role="user", content="Hi")
    assert _template("{{ messages[0].secret }}").render([message]) == ""
    with pytest.raises(TemplateError, match="type object"):
        _template("").render([{"content": object()}])


def test_metadata_that_is_not_text_is_refused() -> None:
    with pytest.raises(TemplateError, match="is not text"):
        ChatTemplate.from_metadata({"tokenizer.chat_template": 3}, _tokenizer())


def test_jinja_is_not_imported_at_start_up() -> None:
    code = "import sys, powerserve.tokenizer; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
