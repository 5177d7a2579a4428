"""What every contestant can do, and how it is asked: the part that runs beside the loaded model.

Nothing but the standard library, because the peers' environments import it too.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from time import perf_counter

MIN_STEPS = 3


class Subject(ABC):
    """A loaded model; all durations are in seconds."""

    system: str  # version and instruction sets, one line

    @abstractmethod
    def prefill(self, num_tokens: int) -> list[float]:
        """A prompt of so many tokens, from nothing to the logits of the last one: one duration."""

    @abstractmethod
    def decode(self, depth: int, num_tokens: int) -> list[float]:
        """Steps of one token after a prompt of `depth`."""

    @abstractmethod
    def begin_steps(self, depth: int) -> None:
        """Compute a sequence of `depth` tokens, which `step` continues."""

    @abstractmethod
    def step(self, num_tokens: int) -> float:
        """One step of so many tokens with logits for all of them; they are forgotten again."""

    @abstractmethod
    def predict(self, token_ids: Sequence[int]) -> list[int]:
        """The most likely token after each of these."""

    def steps(self, depth: int, num_tokens: int, budget_s: float) -> list[float]:
        """As many steps as fit into the time, after one that is not counted."""
        self.begin_steps(depth)
        self.step(num_tokens)
        start_s = perf_counter()
        durations_s: list[float] = []
        while len(durations_s) < MIN_STEPS or perf_counter() - start_s < budget_s:
            durations_s.append(self.step(num_tokens))
        return durations_s


def answer_questions(subject: Subject) -> None:
    """Answer lines of the form `["prefill", 512]`, a method and its arguments, until they end."""
    print(subject.system, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(getattr(subject, name)(*arguments)), flush=True)
