"""A model in this process answers."""

from __future__ import annotations

from collections.abc import Sequence

from powerserve.core.errors import ContextLengthError, UsageError
from powerserve.evaluate.multiple_choice.chooser import Choice, ChooseBy, ImagesRefusedError
from powerserve.evaluate.multiple_choice.prompts import (
    chat_messages,
    completion_prompt,
    find_letter,
)
from powerserve.evaluate.multiple_choice.question import Question
from powerserve.llm import LLM
from powerserve.sampler.params import SamplingParams

_FAR_ABOVE = 100.0  # added to the letters' logits: their order stays, all else falls behind


class LocalChooser:
    """Asks an LLM. Examples that do not fit into its context are left out, the last ones first."""

    def __init__(self, llm: LLM, choose_by: ChooseBy, max_tokens: int) -> None:
        """`max_tokens` of a reply, if answers are generated."""
        self._llm = llm
        self._by_logprob = choose_by is ChooseBy.LOGPROB
        self._reply_params = SamplingParams(temperature=0, max_tokens=max_tokens)

    def choose(self, question: Question, examples: Sequence[Question]) -> Choice:
        """Answer one question. Raises ContextLengthError if it is too long without examples."""
        if question.images:
            raise ImagesRefusedError("models in this process cannot see images yet")
        ask = self._likeliest if self._by_logprob else self._reply
        for num_examples in range(len(examples), 0, -1):
            try:
                return ask(question, examples[:num_examples])
            except ContextLengthError:
                continue
        return ask(question, ())

    def _likeliest(self, question: Question, examples: Sequence[Question]) -> Choice:
        """The prompt's tokens are computed once, whatever the number of letters."""
        prompt, letters = self._encode(question, completion_prompt(question, examples))
        params = SamplingParams(
            temperature=0, max_tokens=1, logit_bias=dict.fromkeys(letters, _FAR_ABOVE)
        )
        (token_id,) = self._llm.generate(prompt, params).token_ids
        return Choice(letters[token_id])

    def _encode(self, question: Question, prompt: str) -> tuple[list[int], dict[int, str]]:
        """The prompt's tokens, and the letters by the tokens that write them after it."""
        encode = self._llm.loaded.tokenizer.encode
        texts = {letter: encode(f"{prompt} {letter}") for letter in question.letters}
        beginnings = {tuple(token_ids[:-1]) for token_ids in texts.values()}
        if len(beginnings) != 1:
            raise UsageError(
                f"{self._llm.loaded.source.name} does not write the letters of answers as one "
                "token each; let it generate answers with --choose-by generation"
            )
        return list(beginnings.pop()), {ids[-1]: letter for letter, ids in texts.items()}

    def _reply(self, question: Question, examples: Sequence[Question]) -> Choice:
        messages = chat_messages(question, examples)
        reply = self._llm.chat(messages, self._reply_params).text
        return Choice(find_letter(reply, question.letters), reply)
