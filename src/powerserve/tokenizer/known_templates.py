"""Prompt formats of well-known model families, for models whose file has no usable template.

Each is a Jinja template like those in model files, written after the family's documentation; the
comment names an example. They differ from those of the original PowerServe where that differed
from the publisher: ChatML ends a turn with a line feed, BOS is written where the publisher does
(`Tokenizer.encode_chat` never doubles it). No default system prompt is added.
"""

from __future__ import annotations

from collections.abc import Callable

from powerserve.core.errors import TemplateError


def _loop(body: str, generation: str = "", before: str = "{{ bos_token }}") -> str:
    """A template that renders `body` for each message `m`, whose stripped content is `text`."""
    ending = f"{{% if add_generation_prompt %}}{{{{ {generation} }}}}{{% endif %}}"
    return (
        f"{before}{{% for m in messages %}}{{% set text = m['content'] | trim %}}{body}"
        f"{{% endfor %}}{ending if generation else ''}"
    )


def _by_role(**turns: str) -> str:
    """Choose an expression by the message's role; other roles are passed over."""
    branches = [
        f"{{% {'elif' if index else 'if'} m['role'] == '{role}' %}}{{{{ {turn} }}}}"
        for index, (role, turn) in enumerate(turns.items())
    ]
    return "".join(branches) + "{% endif %}"


def _llama2(*, system: bool, bos: bool, strip: bool) -> str:
    """Llama 2's format: “[INST] <<SYS>>…<</SYS>> question [/INST] answer</s>”."""
    content = "text" if strip else "m['content']"
    framed = f"'<<SYS>>\\n' + {content} + '\\n<</SYS>>\\n\\n'" if system else f"{content} + '\\n'"
    opening = "{% if not ns.open %}{{ START }}[INST] {% set ns.open = true %}{% endif %}"
    opening = opening.replace("START", "bos_token if not loop.first else ''" if bos else "''")
    body = (
        "{% if m['role'] == 'assistant' %}{{ ANSWER }}{% set ns.open = false %}{% else %}"
        + opening
        + "{% if m['role'] == 'system' %}{{ SYSTEM }}{% else %}{{ USER }}{% endif %}{% endif %}"
    )
    body = body.replace("ANSWER", f"' ' + {content} + ' ' + eos_token")
    body = body.replace("SYSTEM", framed).replace("USER", f"{content} + ' [/INST]'")
    return _loop(body, before="{{ bos_token }}{% set ns = namespace(open=false) %}")


def _mistral(before: str, after: str, answer: str) -> str:
    """Mistral's format; the system prompt stands inside the first instruction."""
    body = (
        "{% if m['role'] == 'assistant' %}{{ ANSWER }}{% set ns.open = false %}{% else %}"
        "{% if not ns.open %}{{ BEFORE }}{% set ns.open = true %}{% endif %}{{ m['content'] }}"
        "{% if m['role'] == 'system' %}{{ '\\n\\n' }}{% else %}{{ AFTER }}{% endif %}{% endif %}"
    )
    body = body.replace("ANSWER", answer).replace("BEFORE", before).replace("AFTER", after)
    return _loop(body, before="{{ bos_token }}{% set ns = namespace(open=false) %}")


# A family without system role: the system prompt opens the next turn of the user.
_COLLECT_SYSTEM = "{{ bos_token }}{% set ns = namespace(system='') %}"
_WITH_SYSTEM = (
    "{% if m['role'] == 'system' %}{% set ns.system = text + '\\n\\n' %}{% else %}"
    "TURN{% if m['role'] != 'assistant' %}{% set ns.system = '' %}{% endif %}{% endif %}"
)

_CHATML = _loop(
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}",
    "'<|im_start|>assistant\\n'",
    before="",
)

_TEMPLATES: dict[str, str] = {
    "chatml": _CHATML,  # Qwen2
    "llama2": _llama2(system=False, bos=False, strip=False),
    "llama2-sys": _llama2(system=True, bos=False, strip=False),
    "llama2-sys-bos": _llama2(system=True, bos=True, strip=False),
    "llama2-sys-strip": _llama2(system=True, bos=True, strip=True),  # Llama-2-7b-chat
    "mistral-v1": _mistral("' [INST] '", "' [/INST]'", "' ' + m['content'] + eos_token"),
    "mistral-v3": _mistral("'[INST] '", "'[/INST]'", "' ' + text + eos_token"),
    "mistral-v3-tekken": _mistral("'[INST]'", "'[/INST]'", "m['content'] + eos_token"),
    "mistral-v7": _loop(  # Mistral-Large-Instruct-2411
        _by_role(
            system="'[SYSTEM_PROMPT] ' + m['content'] + '[/SYSTEM_PROMPT]'",
            user="'[INST] ' + m['content'] + '[/INST]'",
            assistant="' ' + m['content'] + eos_token",
        )
    ),
    "phi3": _loop(  # Phi-3-mini-4k-instruct
        "{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}", "'<|assistant|>\\n'"
    ),
    "phi4": _loop(
        "{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}",
        "'<|im_start|>assistant<|im_sep|>'",
        before="",
    ),
    "zephyr": _loop(  # zephyr-7b-beta
        "{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}",
        "'<|assistant|>\\n'",
        before="",
    ),
    "monarch": _loop(  # AlphaMonarch-7B
        "{{ bos_token + m['role'] + '\\n' + m['content'] + eos_token + '\\n' }}",
        "bos_token + 'assistant\\n'",
        before="",
    ),
    "gemma": _loop(  # gemma-2-2b-it
        _WITH_SYSTEM.replace(
            "TURN",
            "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
            "{{ ('' if m['role'] == 'assistant' else ns.system) + text + '<end_of_turn>\\n' }}",
        ),
        "'<start_of_turn>model\\n'",
        before=_COLLECT_SYSTEM,
    ),
    "orion": _loop(  # Orion-14B-Chat
        _WITH_SYSTEM.replace(
            "TURN",
            "{% if m['role'] == 'assistant' %}{{ m['content'] + eos_token }}{% else %}"
            "{{ 'Human: ' + ns.system + m['content'] + '\\n\\nAssistant: ' + eos_token }}"
            "{% endif %}",
        ),
        before=_COLLECT_SYSTEM,
    ),
    "openchat": _loop(  # openchat-3.5-0106
        "{{ '' if m['role'] == 'system' else 'GPT4 Correct ' + m['role'] | title + ': ' }}"
        "{{ m['content'] + '<|end_of_turn|>' }}",
        "'GPT4 Correct Assistant:'",
    ),
    "vicuna": _loop(  # vicuna-13b-v1.1
        _by_role(
            system="m['content'] + '\\n\\n'",
            user="'USER: ' + m['content'] + '\\n'",
            assistant="'ASSISTANT: ' + m['content'] + eos_token + '\\n'",
        ),
        "'ASSISTANT:'",
    ),
    "vicuna-orca": _loop(
        _by_role(
            system="'SYSTEM: ' + m['content'] + '\\n'",
            user="'USER: ' + m['content'] + '\\n'",
            assistant="'ASSISTANT: ' + m['content'] + eos_token + '\\n'",
        ),
        "'ASSISTANT:'",
    ),
    "deepseek": _loop(  # deepseek-coder-6.7b-instruct
        _by_role(
            system="m['content']",
            user="'### Instruction:\\n' + m['content'] + '\\n'",
            assistant="'### Response:\\n' + m['content'] + '\\n<|EOT|>\\n'",
        ),
        "'### Response:\\n'",
    ),
    "deepseek2": _loop(  # DeepSeek-V2-Lite-Chat
        _by_role(
            system="m['content'] + '\\n\\n'",
            user="'User: ' + m['content'] + '\\n\\n'",
            assistant="'Assistant: ' + m['content'] + eos_token",
        ),
        "'Assistant:'",
    ),
    "deepseek3": _loop(  # DeepSeek-V3, DeepSeek-R1
        _by_role(
            system="m['content']",
            user="'<｜User｜>' + m['content']",
            assistant="'<｜Assistant｜>' + m['content'] + '<｜end▁of▁sentence｜>'",
        ),
        "'<｜Assistant｜>'",
    ),
    "command-r": _loop(  # c4ai-command-r-v01
        "{{ '<|START_OF_TURN_TOKEN|><|' + {'system': 'SYSTEM', 'assistant': 'CHATBOT'}"
        ".get(m['role'], 'USER') + '_TOKEN|>' + text + '<|END_OF_TURN_TOKEN|>' }}",
        "'<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'",
    ),
    "llama3": _loop(  # Meta-Llama-3-8B-Instruct
        "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' + text + '<|eot_id|>' }}",
        "'<|start_header_id|>assistant<|end_header_id|>\\n\\n'",
    ),
    "chatglm3": _loop(
        "{{ '<|' + m['role'] + '|>\\n ' + m['content'] }}", "'<|assistant|>'", before="[gMASK]sop"
    ),
    "chatglm4": _loop(  # glm-4-9b-chat
        "{{ '<|' + m['role'] + '|>\\n' + m['content'] }}", "'<|assistant|>'", before="[gMASK]<sop>"
    ),
    "minicpm": _loop("{{ '<用户>' + text + '<AI>' if m['role'] == 'user' else text }}"),
    "exaone3": _loop(  # EXAONE-3.0-7.8B-Instruct
        _by_role(
            system="'[|system|]' + text + '[|endofturn|]\\n'",
            user="'[|user|]' + text + '\\n'",
            assistant="'[|assistant|]' + text + '[|endofturn|]\\n'",
        ),
        "'[|assistant|]'",
    ),
}

# Marks in a model's own template, tried in this order; all marks of a row must be there.
_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("phi4", ("<|im_start|>", "<|im_sep|>")),
    ("chatml", ("<|im_start|>",)),
    ("mistral-v7", ("[INST]", "[SYSTEM_PROMPT]")),
    ("mistral-v1", ("' [INST] ' + system_message",)),
    ("mistral-v1", ("[AVAILABLE_TOOLS]", " [INST]")),
    ("mistral-v3-tekken", ("[AVAILABLE_TOOLS]", '"[INST]"')),
    ("mistral-v3", ("[AVAILABLE_TOOLS]", "[INST]")),
    ("llama2-sys-strip", ("[INST]", "content.strip()")),
    ("llama2-sys-bos", ("[INST]", "bos_token + '[INST]")),
    ("llama2-sys", ("[INST]", "<<SYS>>")),
    ("llama2", ("[INST]",)),
    ("phi3", ("<|assistant|>", "<|end|>")),
    ("chatglm4", ("[gMASK]<sop>",)),
    ("zephyr", ("<|user|>",)),
    ("monarch", ("bos_token + message['role']",)),
    ("gemma", ("<start_of_turn>",)),
    ("orion", ("'\\n\\nAssistant: ' + eos_token",)),
    ("openchat", ("GPT4 Correct ",)),
    ("vicuna-orca", ("USER: ", "ASSISTANT: ", "SYSTEM: ")),
    ("vicuna", ("USER: ", "ASSISTANT: ")),
    ("deepseek", ("### Instruction:", "<|EOT|>")),
    ("command-r", ("<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>")),
    ("llama3", ("<|start_header_id|>", "<|end_header_id|>")),
    ("chatglm3", ("[gMASK]sop",)),
    ("minicpm", ("<用户>",)),
    ("deepseek2", ("'Assistant: ' + message['content'] + eos_token",)),
    ("deepseek3", ("<｜Assistant｜>", "<｜User｜>")),
    ("exaone3", ("[|system|]", "[|assistant|]", "[|endofturn|]")),
)

# Tokens that only models of a family have, for files without any template.
_TOKENS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("chatml", ("<|im_start|>", "<|im_end|>")),
    ("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    ("gemma", ("<start_of_turn>", "<end_of_turn>")),
    ("phi3", ("<|user|>", "<|assistant|>", "<|end|>")),
    ("command-r", ("<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>")),
    ("deepseek3", ("<｜User｜>", "<｜Assistant｜>")),
    ("exaone3", ("[|system|]", "[|endofturn|]")),
    ("mistral-v3", ("[INST]", "[/INST]")),
)


def template_names() -> list[str]:
    """The names that `template_by_name` knows, sorted."""
    return sorted(_TEMPLATES)


def template_by_name(name: str) -> str:
    """Return the Jinja source of a known format; raises TemplateError for an unknown name."""
    try:
        return _TEMPLATES[name]
    except KeyError:
        known = ", ".join(template_names())
        raise TemplateError(
            f"there is no chat template named “{name}”; known are: {known}"
        ) from None


def recognise_template(source: str) -> str | None:
    """Name the format that a template writes, by marks in its text; None if no mark is known."""
    return next((name for name, marks in _MARKS if all(mark in source for mark in marks)), None)


def recognise_tokens(has_token: Callable[[str], bool]) -> str | None:
    """Name the format that a vocabulary was made for; None if it has no tokens for turns."""
    return next((name for name, tokens in _TOKENS if all(map(has_token, tokens))), None)
