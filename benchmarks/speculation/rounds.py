"""Contestants taking turns, prompt by prompt, so that what disturbs the machine meets them all."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from contestants import Contestant, Run
from prompts import Prompt

WARM_UP_TOKENS = 48


@dataclass(frozen=True, slots=True)
class Record:
    """One answer of one contestant."""

    round: int
    prompt: Prompt
    contestant: str
    run: Run


def warm_up(contestants: Sequence[Contestant], prompt: Prompt) -> None:
    """Compile what has to be compiled, and give everyone something that repeats itself.

    PowerServe measures what its steps cost when it first has candidates: here, not in a result.
    """
    repeating = prompt.token_ids[-WARM_UP_TOKENS:] * 4
    for contestant in contestants:
        _say(f"warming up {contestant.name}\n")
        contestant.run(repeating, WARM_UP_TOKENS)


def take_turns(
    contestants: Sequence[Contestant],
    prompts: Sequence[Prompt],
    *,
    rounds: int,
    num_tokens: int,
    seed: int,
) -> Iterator[Record]:
    """Every contestant continues every prompt in every round, in random order for each prompt.

    Ends early on Ctrl-C, after the last prompt that all have continued.
    """
    rng = random.Random(seed)
    try:
        for number in range(rounds):
            for prompt in prompts:
                _say(f"round {number + 1} of {rounds}, {prompt.workload}/{prompt.name}:")
                yield from _turn(number, prompt, contestants, num_tokens, rng)
    except KeyboardInterrupt:
        _say("\nstopped; here is what was measured\n")


def _turn(
    number: int,
    prompt: Prompt,
    contestants: Sequence[Contestant],
    num_tokens: int,
    rng: random.Random,
) -> list[Record]:
    records = []
    for contestant in rng.sample(contestants, len(contestants)):
        run = contestant.run(prompt.token_ids, num_tokens)
        records.append(Record(number, prompt, contestant.name, run))
        _say(f" {contestant.name} {run.decode_rate:.1f}")
    _say("\n")
    return records


def _say(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
