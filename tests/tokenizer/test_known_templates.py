"""The formats known by name, and their recognition."""

import pytest

from conversations import CONVERSATION, TEMPLATES
from powerserve.core.errors import TemplateError
from powerserve.tokenizer import ChatTemplate, Tokenizer
from powerserve.tokenizer.known_templates import (
    recognise_template,
    recognise_tokens,
    template_names,
)
from small_tokenizers import byte_pair_metadata

# {B} is BOS, {E} is EOS. Written after the publishers' documentation.
EXPECTED = {
    "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama2": "{B}[INST] Be brief.\nHi [/INST] Hello! {E}[INST] Bye [/INST]",
    "llama2-sys": "{B}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! {E}"
    "[INST] Bye [/INST]",
    "llama2-sys-bos": "{B}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! {E}"
    "{B}[INST] Bye [/INST]",
    "llama2-sys-strip": "{B}[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! {E}"
    "{B}[INST] Bye [/INST]",
    "mistral-v1": "{B} [INST] Be brief.\n\nHi [/INST] Hello!{E} [INST] Bye [/INST]",
    "mistral-v3": "{B}[INST] Be brief.\n\nHi[/INST] Hello!{E}[INST] Bye[/INST]",
    "mistral-v3-tekken": "{B}[INST]Be brief.\n\nHi[/INST]Hello!{E}[INST]Bye[/INST]",
    "mistral-v7": "{B}[SYSTEM_PROMPT] Be brief.[/SYSTEM_PROMPT][INST] Hi[/INST] Hello!{E}"
    "[INST] Bye[/INST]",
    "phi3": "{B}<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
    "<|user|>\nBye<|end|>\n<|assistant|>\n",
    "phi4": "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>Hi<|im_end|>"
    "<|im_start|>assistant<|im_sep|>Hello!<|im_end|><|im_start|>user<|im_sep|>Bye<|im_end|>"
    "<|im_start|>assistant<|im_sep|>",
    "zephyr": "<|system|>\nBe brief.{E}\n<|user|>\nHi{E}\n<|assistant|>\nHello!{E}\n"
    "<|user|>\nBye{E}\n<|assistant|>\n",
    "monarch": "{B}system\nBe brief.{E}\n{B}user\nHi{E}\n{B}assistant\nHello!{E}\n{B}user\nBye{E}\n"
    "{B}assistant\n",
    "gemma": "{B}<start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello!"
    "<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "orion": "{B}Human: Be brief.\n\nHi\n\nAssistant: {E}Hello!{E}Human: Bye\n\nAssistant: {E}",
    "openchat": "{B}Be brief.<|end_of_turn|>GPT4 Correct User: Hi<|end_of_turn|>"
    "GPT4 Correct Assistant: Hello!<|end_of_turn|>GPT4 Correct User: Bye<|end_of_turn|>"
    "GPT4 Correct Assistant:",
    "vicuna": "{B}Be brief.\n\nUSER: Hi\nASSISTANT: Hello!{E}\nUSER: Bye\nASSISTANT:",
    "vicuna-orca": "{B}SYSTEM: Be brief.\nUSER: Hi\nASSISTANT: Hello!{E}\nUSER: Bye\nASSISTANT:",
    "deepseek": "{B}Be brief.### Instruction:\nHi\n### Response:\nHello!\n<|EOT|>\n"
    "### Instruction:\nBye\n### Response:\n",
    "deepseek2": "{B}Be brief.\n\nUser: Hi\n\nAssistant: Hello!{E}User: Bye\n\nAssistant:",
    "deepseek3": "{B}Be brief.<｜User｜>Hi<｜Assistant｜>Hello!<｜end▁of▁sentence｜><｜User｜>Bye"
    "<｜Assistant｜>",
    "command-r": "{B}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be brief.<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>Hello!<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Bye<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    "llama3": "{B}<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "chatglm3": "[gMASK]sop<|system|>\n Be brief.<|user|>\n Hi<|assistant|>\n Hello!"
    "<|user|>\n Bye<|assistant|>",
    "chatglm4": "[gMASK]<sop><|system|>\nBe brief.<|user|>\nHi<|assistant|>\nHello!"
    "<|user|>\nBye<|assistant|>",
    "minicpm": "{B}Be brief.<用户>Hi<AI>Hello!<用户>Bye<AI>",
    "exaone3": "{B}[|system|]Be brief.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello![|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", template_names())
def test_a_known_format_renders_as_published(name: str) -> None:
    template = ChatTemplate.by_name(name, Tokenizer.from_metadata(byte_pair_metadata()))
    expected = EXPECTED[name].replace("{B}", "<|endoftext|>").replace("{E}", "<|im_end|>")
    assert template.render(CONVERSATION) == expected


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(TemplateError, match=r"named “nonsense”.*chatml.*llama3"):
        ChatTemplate.by_name("nonsense", Tokenizer.from_metadata(byte_pair_metadata()))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("smollm2", "chatml"),
        ("qwen2.5-coder", "chatml"),
        ("llama3.1-like", "llama3"),
        ("deepseek-r1-like", "deepseek3"),
    ],
)
def test_real_templates_are_recognised(file: str, name: str) -> None:
    source = (TEMPLATES / f"{file}.jinja").read_text(encoding="utf-8")
    assert recognise_template(source) == name


def test_marks_and_tokens_of_formats() -> None:
    assert recognise_template("{{ '[INST] <<SYS>>' }}") == "llama2-sys"
    assert recognise_template("{{ '[SYSTEM_PROMPT] [INST]' }}") == "mistral-v7"
    assert recognise_template("{{ '<|user|>' + eos_token }}") == "zephyr"
    assert recognise_template("nothing known") is None
    assert recognise_tokens({"<start_of_turn>", "<end_of_turn>"}.__contains__) == "gemma"
    assert recognise_tokens(lambda text: False) is None
