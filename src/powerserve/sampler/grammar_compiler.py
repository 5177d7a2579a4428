"""Grammars on one model's vocabulary: masks of the tokens that may come next, by llguidance.

Source of the method: https://github.com/guidance-ai/llguidance (an Earley parser over lexemes that
are matched by derivatives of regular expressions, walking the vocabulary as a trie).
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from powerserve.core.errors import UsageError
from powerserve.sampler.grammar import Grammar
from powerserve.sampler.grammar_check import checked, readable_reason
from powerserve.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_MAX_KNOWN = 64  # grammars that need no second check


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Thread-safe; cheap until the first grammar comes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: LLTokenizer | None = None
        self._known: OrderedDict[Grammar, str] = OrderedDict()
        self._lock = Lock()

    def compile(self, grammar: Grammar) -> GrammarConstraint:
        """Return the grammar's start; bounded in time and memory, but not for an event loop.

        Takes about 0.1 s for a grammar it does not know yet, 1 ms otherwise; the first time also
        what `prepare` takes. Raises UsageError with the reason if the grammar cannot be used.
        """
        from llguidance import LLMatcher

        from powerserve.sampler.grammar_probe import parser_limits

        text = self._checked(grammar)
        matcher = LLMatcher(self.prepare(), text, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first is the most expensive: not in the engine's thread
        if matcher.is_error():
            raise UsageError(
                f"the {grammar.name} cannot be used: {readable_reason(matcher.get_error())}"
            )
        return GrammarConstraint(matcher)

    def prepare(self) -> LLTokenizer:
        """Put the vocabulary into llguidance's form, once: 0.3 s for 49,152 tokens, 27 MB.

        For two thirds of that the interpreter stands still, so do it while nothing runs. Raises
        UsageError for a vocabulary that cannot be used.
        """
        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = _vocabulary(self._tokenizer)
            return self._vocabulary

    def _checked(self, grammar: Grammar) -> str:
        with self._lock:
            text = self._known.get(grammar)
        if text is None:
            text = checked(grammar)
        with self._lock:
            self._known[grammar] = text
            self._known.move_to_end(grammar)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return text


class GrammarConstraint:
    """A sequence's state in a compiled grammar; belongs to one thread at a time."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher
        self._mask: NDArray[np.uint32] | None = None  # of the state as it is now

    @property
    def is_complete(self) -> bool:
        """Whether only a stop token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> NDArray[np.uint32]:
        """The tokens that may come next: uint32 [vocab_size / 32 and a little], lowest bit first.

        All stop tokens are among them where the text may end. Raises UsageError if the grammar has
        become too complex to follow, or a token was accepted that it forbids.
        """
        if self._mask is None:
            mask = self._matcher.compute_bitmask()
            if self._matcher.is_error():
                reason = readable_reason(self._matcher.get_error())
                raise UsageError(f"the grammar cannot be followed any further: {reason}")
            self._mask = np.frombuffer(mask, np.uint32)
        return self._mask

    def accept(self, token_id: int) -> None:
        """Advance by one token; what goes wrong is raised by the next `allowed`."""
        self._matcher.consume_token(token_id)
        self._mask = None

    def copy(self) -> Self:
        """Return an independent twin: 10 to 100 µs, more after thousands of tokens."""
        twin = type(self)(self._matcher.deep_copy())
        twin._mask = self._mask
        return twin


def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    if not tokenizer.stop_ids:
        raise UsageError("the model has no token to end with, so its answers cannot have a form")
    source = TokenizerWrapper(_VocabularySource(tokenizer))
    # In two steps, each of which keeps the interpreter for half of the time.
    vocabulary = LLTokenizer(source, eos_token=sorted(tokenizer.stop_ids), slices=[])
    return vocabulary.with_slices(LLTokenizer.general_slices())


class _VocabularySource:
    """A tokenizer with the attributes that llguidance asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        hidden = tokenizer.hidden_ids | tokenizer.stop_ids
        self.tokens = [
            tokenizer.token_bytes(token_id, special=True)
            for token_id in range(tokenizer.vocab_size)
        ]
        self.special_token_ids = sorted(hidden)  # never part of a text
        self.eos_token_id = min(tokenizer.stop_ids, default=None)
        self.bos_token_id = tokenizer.special.bos
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """The tokens of a text that the grammar leaves no choice about."""
        return self._tokenizer.encode_inner(text)
