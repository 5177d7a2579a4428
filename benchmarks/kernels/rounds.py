"""Contestants taking turns, test by test, so that what disturbs the machine meets them all."""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from contestants import LineProcess


@dataclass(frozen=True, slots=True)
class Test:
    """Something to measure, and what is asked of which processes for it."""

    name: str
    question: Any
    processes: tuple[str, ...]


@dataclass(slots=True)
class Samples:
    """Durations in seconds: by test and process, a list of rounds, each with every call."""

    seconds: dict[str, dict[str, list[list[float]]]] = field(default_factory=dict)
    is_complete: bool = True  # else somebody has pressed Ctrl-C

    def add(self, test: str, process: str, durations_s: list[float]) -> None:
        """Note a turn."""
        self.seconds.setdefault(test, {}).setdefault(process, []).append(durations_s)

    def has(self, test: str, process: str) -> bool:
        """Whether there is any."""
        return process in self.seconds.get(test, {})

    def rounds_s(self, test: str, process: str) -> list[float]:
        """The median call of each round."""
        return [statistics.median(calls) for calls in self.seconds[test][process]]

    def median_s(self, test: str, process: str) -> float:
        """The median of the rounds."""
        return statistics.median(self.rounds_s(test, process))

    def speedups(self, test: str, process: str, other: str) -> list[float]:
        """How many times as fast as `other`, round by round."""
        pairs = zip(self.rounds_s(test, process), self.rounds_s(test, other), strict=False)
        return [theirs / ours for ours, theirs in pairs]


def take_turns(
    processes: Mapping[str, LineProcess], tests: Sequence[Test], rounds: int, seed: int
) -> Samples:
    """Every process answers every test in every round, in random order.

    Ends early on Ctrl-C, with what was measured.
    """
    rng = random.Random(seed)
    samples = Samples()
    try:
        for number in range(1, rounds + 1):
            for test in tests:
                say(f"round {number} of {rounds}, {test.name}:")
                for name in rng.sample(test.processes, len(test.processes)):
                    with awake(processes[name]) as process:
                        samples.add(test.name, name, _durations(process.ask(test.question)))
                    say(f" {name} {1000 * samples.rounds_s(test.name, name)[-1]:.2f} ms;")
                say("\n")
    except KeyboardInterrupt:
        samples.is_complete = False
        say("\nstopped; here is what was measured\n")
    return samples


@contextmanager
def awake(process: LineProcess) -> Iterator[LineProcess]:
    """A process that runs only now."""
    process.resume()
    try:
        yield process
    finally:
        process.pause()


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, end="", file=sys.stderr, flush=True)


def _durations(answer: list[float] | float) -> list[float]:
    return answer if isinstance(answer, list) else [answer]
