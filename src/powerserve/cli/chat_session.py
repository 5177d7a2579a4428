"""A chat with a loaded model: asks, prints, and keeps the conversation within the context."""

from __future__ import annotations

import sys
from typing import TextIO

from powerserve.backend.base import StepInterrupted
from powerserve.cli.conversation import Conversation
from powerserve.cli.interrupt import interruptible
from powerserve.cli.terminal import TextPrinter
from powerserve.core.errors import ContextLengthError
from powerserve.engine.generation import Completion, TextGeneration
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams


class ChatSession:
    """One conversation with one model; the cache makes every turn but the first cheap."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        conversation: Conversation,
        out: TextIO | None,
        *,
        interactive: bool,
    ) -> None:
        """`interactive`: Ctrl-C stops an answer, and not the program.

        Raises TemplateError if the model cannot chat at all: better now than after a question.
        """
        self.llm = llm
        self.conversation = conversation
        self.last: Completion | None = None
        self._params = params
        self._interactive = interactive
        self._printer = TextPrinter(out)
        llm.encode_chat([{"role": "user", "content": "Hello"}])

    @property
    def context_size(self) -> int:
        """Tokens that the conversation may have."""
        return self.llm.loaded.engine.config.context_size

    def ask(self, question: str) -> None:
        """Answer a question; it is taken back if there is no answer.

        Raises PowerServeError, for instance if the question is longer than the context.
        """
        self.conversation.ask(question)
        self.answer()

    def answer(self) -> None:
        """Answer the last question: print the text as it comes and keep it. Errors as in `ask`."""
        try:
            self._answer()
        finally:
            self.conversation.drop_question()

    def regenerate(self) -> None:
        """Answer the last question once more, with other random numbers."""
        self.conversation.drop_answer()
        if self._params.seed is not None:
            self._params = self._params.replace(seed=(self._params.seed + 1) % 2**64)
        if self.conversation.awaits_answer:
            self.answer()
        else:
            note("there is no question yet")

    def _answer(self) -> None:
        generation = self.llm.start(self._fitting_prompt(), self._params)
        stopped = self._print_pieces(generation)
        self.last = generation.completion()
        self._printer.write("\n")
        if self.last.text or not stopped:
            self.conversation.answer(self.last.text)
        if stopped:
            note("stopped" if self.last.text else "stopped; the question is forgotten")
        elif self.last.finish_reason == "context":
            note(f"cut off: the context of {self.context_size} tokens is full (-c makes it larger)")

    def _print_pieces(self, generation: TextGeneration) -> bool:
        """Print until the end or until Ctrl-C; whether it was Ctrl-C, if that stops answers."""
        try:
            with interruptible(self.llm.loaded.backend):
                for piece in self.llm.pieces(generation):
                    self._printer.write(piece.text)
        except (KeyboardInterrupt, StepInterrupted):
            if not self._interactive:
                raise
            return True
        return False

    def _fitting_prompt(self) -> list[int]:
        """The conversation's tokens, after dropping its beginning if it has grown too long.

        More is dropped than must be, since the rest has to be computed anew: once in a while
        rather than at every turn.
        """
        tokens = self.llm.encode_chat(self.conversation.messages())
        if len(tokens) + self._answer_room() <= self.context_size:
            return tokens
        num_forgotten = 0
        while len(tokens) > self.context_size // 2 and self.conversation.forget_oldest():
            num_forgotten += 1
            tokens = self.llm.encode_chat(self.conversation.messages())
        if num_forgotten:
            note(f"the conversation is too long: forgot its first {num_forgotten} question(s)")
        if len(tokens) >= self.context_size:
            raise ContextLengthError(
                f"the question has {len(tokens):,} tokens, but the context holds "
                f"{self.context_size:,} with the answer; shorten it or choose a larger context (-c)"
            )
        return tokens

    def _answer_room(self) -> int:
        """Tokens to keep free for an answer."""
        quarter = self.context_size // 4
        wanted = self._params.max_tokens
        return quarter if wanted is None else min(wanted, quarter)


def note(text: str) -> None:
    """A remark that is not part of the conversation."""
    print(f"[{text}]", file=sys.stderr, flush=True)
