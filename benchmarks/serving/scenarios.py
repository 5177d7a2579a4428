"""What is measured: throughput, shared system prompts, and streams beside a long prompt."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from powerserve.evaluate.server_load.chat_request import ChatRecord
from powerserve.evaluate.server_load.plan import LoadPlan
from powerserve.evaluate.server_load.run import LoadRun, interleaved
from powerserve.evaluate.server_load.summary import LoadSummary, Percentiles, summarise
from powerserve.evaluate.server_load.target import Target

PREFIX_WORDS = 1000
LONG_PROMPT_WORDS = 4000
NUM_STREAMS = 4
FOREVER_S = 1e6


@dataclass(frozen=True, slots=True)
class Comparison:
    """One plan on both servers: a summary for each round, ours and theirs."""

    plan: LoadPlan
    ours: Sequence[LoadSummary]
    theirs: Sequence[LoadSummary]

    @property
    def throughput_ratios(self) -> list[float]:
        """Our generated tokens per second by theirs, in each round."""
        return [
            one.generated_tokens_per_s / other.generated_tokens_per_s
            for one, other in zip(self.ours, self.theirs, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class PrefixGain:
    """One server's time to first token after a system prompt that is new, and one that is known."""

    new_s: float
    known_s: float

    @property
    def gain(self) -> float:
        """How many times sooner the first token comes."""
        return self.new_s / self.known_s


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Gaps between the tokens of running streams, with and without a long prompt beside them."""

    alone: Percentiles
    beside: Percentiles
    long_first_token_s: float  # the median
    num_gaps: int


def throughput(
    targets: Sequence[Target],
    num_clients: int,
    requests_per_client: int,
    num_rounds: int,
    seed: int,
) -> Comparison:
    """Clients with distinct prompts of 128 words and answers of 64 tokens."""
    plan = LoadPlan(
        num_requests=requests_per_client * num_clients,
        num_clients=num_clients,
        num_warm_up=num_clients,
        seed=seed,
    )
    runs = interleaved(targets, plan, num_rounds, _dot)
    asyncio.run(_execute_all(runs))
    ours, theirs = ([summarise([run]) for run in runs if run.target is each] for each in targets)
    return Comparison(plan, ours, theirs)


def prefix_gain(target: Target, num_requests: int, num_rounds: int, seed: int) -> PrefixGain:
    """One client at a time; rounds with a shared and with distinct system prompts take turns."""
    plan = LoadPlan(num_requests=num_requests, num_clients=1, prompt_words=16, max_tokens=8)
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(num_rounds):
        for is_shared in (True, False):
            words = {"shared_words" if is_shared else "distinct_words": PREFIX_WORDS}
            run = LoadRun(target, replace(plan, seed=seed + number, **words), _dot)
            asyncio.run(run.execute())
            times[is_shared] += [record.first_token_s for record in run.records]
    return PrefixGain(statistics.median(times[False]), statistics.median(times[True]))


def disturbance(target: Target, num_prompts: int, seed: int) -> Disturbance:
    """Streams that go on, and long prompts one after another with a pause between them."""
    return asyncio.run(_disturbance(target, num_prompts, seed))


async def _disturbance(target: Target, num_prompts: int, seed: int) -> Disturbance:
    streams = LoadRun(
        target,
        LoadPlan(
            num_requests=None,
            duration_s=FOREVER_S,
            num_clients=NUM_STREAMS,
            prompt_words=16,
            max_tokens=256,
            seed=seed,
        ),
    )
    long_plan = LoadPlan(
        num_requests=1,
        num_clients=1,
        prompt_words=LONG_PROMPT_WORDS,
        max_tokens=1,
        num_warm_up=0,
    )
    task = asyncio.create_task(streams.execute())
    long_ones: list[ChatRecord] = []
    for number in range(num_prompts):
        await asyncio.sleep(5)
        run = LoadRun(target, replace(long_plan, seed=seed + 1 + number), _dot)
        await run.execute()
        long_ones += run.records
    await asyncio.sleep(5)
    streams.stop()
    await task
    return _divided(streams.records, long_ones)


def _divided(streams: Sequence[ChatRecord], long_ones: Sequence[ChatRecord]) -> Disturbance:
    """The gaps, by whether a long prompt was being computed in them."""
    times = [(record.began_s, record.arrivals_s[0]) for record in long_ones]
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for record in streams:
        for start, end in zip(record.arrivals_s, record.arrivals_s[1:], strict=False):
            is_beside = any(start < last and first < end for first, last in times)
            gaps[is_beside].append(end - start)
    alone, beside = Percentiles.of(gaps[False]), Percentiles.of(gaps[True])
    if alone is None or beside is None:
        raise SystemExit("the streams did not last: no gap was measured")
    waits = [last - first for first, last in times]
    return Disturbance(alone, beside, statistics.median(waits), len(gaps[True]))


async def _execute_all(runs: Sequence[LoadRun]) -> None:
    for run in runs:
        await run.execute()


def _dot(count: int) -> None:
    """Show that the work goes on."""
    print("." * count, end="", file=sys.stderr, flush=True)
