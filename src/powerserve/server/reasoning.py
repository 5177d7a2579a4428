"""Telling what a model thinks from what it answers.

Reasoning models (DeepSeek-R1, Qwen3, QwQ) write `<think>…</think>` before the answer. Some
templates open the tag themselves at the end of the prompt, so that the output begins inside.
"""

from __future__ import annotations

from powerserve.server.content import NOTHING, Content, ContentParser
from powerserve.server.tags import held_length

OPENING, CLOSING = "<think>", "</think>"
MARKUP = (OPENING, CLOSING)


def can_reason(template: str) -> bool:
    """Whether a model with this chat template writes its reasoning between tags."""
    return OPENING in template or CLOSING in template


def opens_reasoning(prompt: str) -> bool:
    """Whether the output goes on inside reasoning that the prompt has opened.

    Only the prompt's very end counts, as a user's message may hold any tag.
    """
    return prompt.rstrip().endswith(OPENING)


class ReasoningParser:
    """Splits off the reasoning that an answer begins with; the rest goes to another parser.

    White space around the tags belongs to neither part. Without a closing tag all is reasoning.
    Tags later in the answer are text.
    """

    def __init__(self, answer: ContentParser, *, starts_inside: bool = False) -> None:
        """`starts_inside`: the prompt has opened the tag."""
        self._answer = answer
        self._starts_inside = starts_inside
        self._has_reasoning = False  # some that is not white space
        self._buffer = ""
        self._read = self._read_start

    def feed(self, text: str) -> Content:
        """Take the next piece of text."""
        self._buffer += text
        return self._read(is_last=False)

    def finish(self) -> Content:
        """What was held back, now that no more text will come."""
        return _joined(self._read(is_last=True), self._answer.finish())

    def _read_start(self, *, is_last: bool) -> Content:
        text = self._buffer.lstrip()
        if OPENING.startswith(text) and not is_last:
            return NOTHING  # it may become the tag
        if text.startswith(OPENING):
            self._buffer = text.removeprefix(OPENING)
            self._read = self._read_reasoning
        else:
            self._read = self._read_reasoning if self._starts_inside else self._read_answer
        return self._read(is_last=is_last)

    def _read_reasoning(self, *, is_last: bool) -> Content:
        reasoning, closing, rest = self._buffer.partition(CLOSING)
        if closing:
            self._buffer = rest
            self._read = self._read_gap
            return _joined(self._reasoning(reasoning.rstrip()), self._read(is_last=is_last))
        certain = len(reasoning) - (0 if is_last else held_length(reasoning, (CLOSING,)))
        self._buffer = reasoning[certain:]
        return self._reasoning(reasoning[:certain])

    def _read_gap(self, *, is_last: bool) -> Content:
        """Between the closing tag and the answer."""
        self._buffer = self._buffer.lstrip()
        if not self._buffer:
            return NOTHING
        self._read = self._read_answer
        return self._read(is_last=is_last)

    def _read_answer(self, *, is_last: bool) -> Content:
        text, self._buffer = self._buffer, ""
        return self._answer.feed(text)

    def _reasoning(self, text: str) -> Content:
        if not self._has_reasoning:
            text = text.lstrip()
            self._has_reasoning = bool(text)
        return Content(reasoning=text)


def _joined(first: Content, second: Content) -> Content:
    return Content(
        first.text + second.text,
        first.reasoning + second.reasoning,
        first.tool_calls + second.tool_calls,
    )
