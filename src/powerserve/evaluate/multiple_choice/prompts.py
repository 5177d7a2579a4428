"""How questions are put, and which option an answer means."""

from __future__ import annotations

import re
from collections.abc import Sequence

from powerserve.evaluate.multiple_choice.question import Question

Message = dict[str, str]

_INSTRUCTION = "Answer with the letter of the right option only."
_THOUGHTS_END = "</think>"


def completion_prompt(question: Question, examples: Sequence[Question]) -> str:
    """Text that the right letter would continue, after a space.

    The wording is that of MMLU's authors (Hendrycks et al. 2021).
    """
    subject = question.subject.replace("_", " ")
    header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    shown = "".join(f"{_with_options(each)}\nAnswer: {each.answer}\n\n" for each in examples)
    return f"{header}{shown}{_with_options(question)}\nAnswer:"


def chat_messages(question: Question, examples: Sequence[Question]) -> list[Message]:
    """A conversation in which the examples have been answered already."""
    messages: list[Message] = []
    for example in examples:
        messages.append(_asked(example))
        messages.append({"role": "assistant", "content": example.answer})
    return [*messages, _asked(question)]


def find_letter(reply: str, letters: str) -> str | None:
    """The option that a reply names, or None.

    `The answer is (B)` counts before a letter that stands by itself at the end of a line or before
    punctuation, and that before any other word of one letter: `A` may be an article.
    """
    said = reply.rpartition(_THOUGHTS_END)[2]
    option = f"[{letters}]"
    for pattern in (
        rf"(?i:answer)(?i:\s+is)?[\s:*(\"]*\b({option})\b",
        rf"\b({option})\b(?=\W*(?:[.,:;)*\n]|$))",
        rf"\b({option})\b",
    ):
        if found := re.search(pattern, said):
            return found[1]
    return None


def _asked(question: Question) -> Message:
    return {"role": "user", "content": f"{_with_options(question)}\n\n{_INSTRUCTION}"}


def _with_options(question: Question) -> str:
    lines = zip(question.letters, question.options, strict=True)
    return "\n".join([question.text, *(f"{letter}. {option}" for letter, option in lines)])
