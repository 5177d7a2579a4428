"""From a sequence's tokens to the text a user reads."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from powerserve.engine.drawing import TokenEvent
from powerserve.engine.engine import Engine
from powerserve.engine.sequence import FinishReason, Sequence, Timings
from powerserve.sampler.chain import Sampled
from powerserve.sampler.stop_text import StopMatcher
from powerserve.speculative.options import SpeculationCounters
from powerserve.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextPiece:
    """What one step added: text that is complete and certain, and the token behind it.

    Text comes late while a character or a stop string is incomplete, so it may be empty.
    """

    text: str
    sampled: Sampled | None = None
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Completion:
    """A finished answer."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, not computed again
    timings: Timings
    speculation: SpeculationCounters | None = None  # None: the answer came without speculation
    samples: list[Sampled] = field(default_factory=list)  # one per token, with log-probabilities


class TextGeneration:
    """Decodes one sequence's events and ends it at a stop string."""

    def __init__(
        self,
        engine: Engine,
        sequence: Sequence,
        tokenizer: Tokenizer,
        *,
        visible: Collection[int] = (),
    ) -> None:
        """The control tokens in `visible` are part of the text; others are not."""
        self.sequence = sequence
        self.finish_reason: FinishReason | None = None  # set with the last piece
        self._engine = engine
        self._decoder = tokenizer.stream(visible=visible)
        self._stops = StopMatcher(sequence.params.stop)
        self._samples: list[Sampled] = []
        self._texts: list[str] = []

    def feed(self, event: TokenEvent) -> TextPiece:
        """Take the sequence's next event; raises the error that ended the sequence, if one did."""
        if self.finish_reason is not None:
            return TextPiece("")  # tokens of the same step, behind a stop string
        if event.error is not None:
            raise event.error
        self.finish_reason = event.finish_reason
        text, stopped = self._decode(event.sampled)
        if stopped:
            self.finish_reason = FinishReason.STOP
            self._engine.cancel(self.sequence, FinishReason.STOP)
        elif self.finish_reason is not None:
            text += self._flush()
        self._texts.append(text)
        return TextPiece(text, event.sampled, self.finish_reason)

    @property
    def stop_text(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched

    def completion(self) -> Completion:
        """Everything so far, as the answer."""
        sequence = self.sequence
        return Completion(
            text="".join(self._texts),
            token_ids=[sampled.token_id for sampled in self._samples],
            finish_reason=self.finish_reason or sequence.finish_reason or FinishReason.CANCELLED,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            timings=sequence.timings,
            speculation=None if sequence.speculation is None else sequence.speculation.counters,
            samples=self._samples,
        )

    def _decode(self, sampled: Sampled | None) -> tuple[str, bool]:
        """(text to show, whether a stop string was met)"""
        if sampled is None:
            return "", False
        self._samples.append(sampled)
        if self.sequence.is_stop_token(sampled.token_id):
            return "", False
        return self._stops.feed(self._decoder.feed(sampled.token_id))

    def _flush(self) -> str:
        """The tail of the text, now that nothing can complete it."""
        text, stopped = self._stops.feed(self._decoder.finish())
        return text if stopped else text + self._stops.finish()
