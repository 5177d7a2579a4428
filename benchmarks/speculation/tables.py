"""The results as markdown."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from contestants import PLAIN, Run
from rounds import Record
from ties import Difference, first_difference

from powerserve.speculative.cost_model import CostCurve

CURVE_SIZES = (1, 2, 4, 8, 16, 32)
_COLUMNS = (
    "decode", "lowest – highest", "total", "tokens/step", "acceptance", "candidates/step",
    "draft runs/step", "free proposals", "same ids", "gap",
)  # fmt: skip
_UNKNOWN = "–"


@dataclass(frozen=True, slots=True)
class Pair:
    """The answers of a contestant and of plain decoding to the same prompt in the same round."""

    plain: Record
    own: Record

    def ratio(self, rate: Callable[[Run], float]) -> float | None:
        """Own rate / plain rate; None where an answer is too short to have one."""
        plain, own = rate(self.plain.run), rate(self.own.run)
        return own / plain if plain and own else None


def print_curves(curves: Sequence[tuple[str, CostCurve]]) -> None:
    """What steps cost, and what a step whose candidates are all accepted would gain."""
    print(f"\n| tokens in a step | {' | '.join(map(str, CURVE_SIZES))} |")
    print("|---" * (len(CURVE_SIZES) + 1) + "|")
    for name, curve in curves:
        costs = [curve(size) / curve(1) for size in CURVE_SIZES]
        print(f"| cost, {name} (1 = {1000 * curve(1):.1f} ms) | {_joined(costs)} |")
    target = curves[0][1]
    gains = [size * target(1) / target(size) for size in CURVE_SIZES]
    print(f"| gain if all are accepted | {_joined(gains)} |", flush=True)


def print_tables(
    records: Sequence[Record],
    differences: Sequence[Difference] = (),
    curve: CostCurve | None = None,
) -> None:
    """A table for each workload: one row for each contestant, plain decoding first."""
    for workload in dict.fromkeys(record.prompt.workload for record in records):
        pairs = _pairs([record for record in records if record.prompt.workload == workload])
        num_prompts = len({pair.plain.prompt for pair in pairs[PLAIN]})
        rates = [pair.plain.run.decode_rate for pair in pairs[PLAIN]]
        plain_rate = statistics.median(rates)
        print(f"\n### {workload}: {num_prompts} prompts, plain {plain_rate:.1f} tokens/s\n")
        print(f"| | {' | '.join(_COLUMNS)} |")
        print("|---" + "|---:" * len(_COLUMNS) + "|")
        for name, own in pairs.items():
            gaps = [d.gap for d in differences if (d.workload, d.contestant) == (workload, name)]
            print(f"| {name} | {' | '.join(_cells(own, gaps, curve))} |", flush=True)


def print_differences(differences: Sequence[Difference]) -> None:
    """Every answer that left plain decoding's, and how near the decision was."""
    if not differences:
        return
    print("\n| answer that differs | mode | at token | gap of the logits | usual gap |")
    print("|---|---|---:|---:|---:|")
    for each in sorted(differences, key=lambda each: -each.gap):
        cells = (f"{each.workload}/{each.prompt}", each.contestant, str(each.position))
        print(f"| {' | '.join(cells)} | {each.gap:.3f} | {each.usual_gap:.2f} |")


def _pairs(records: Sequence[Record]) -> dict[str, list[Pair]]:
    """By contestant: its answers with plain decoding's to the same prompts."""
    answers: dict[str, dict[tuple[int, str], Record]] = defaultdict(dict)
    for record in records:
        answers[record.contestant][record.round, record.prompt.name] = record
    plain = answers.pop(PLAIN)
    return {
        name: [Pair(plain[key], own) for key, own in of_one.items()]
        for name, of_one in [(PLAIN, plain), *sorted(answers.items())]
    }


def _cells(pairs: Sequence[Pair], gaps: Sequence[float], curve: CostCurve | None) -> list[str]:
    decode = _prompt_ratios(pairs, lambda run: run.decode_rate)
    total = _prompt_ratios(pairs, lambda run: run.total_rate)
    runs = [pair.own.run for pair in pairs]
    num_steps = sum(run.num_steps for run in runs)
    num_candidates = sum(run.num_candidates for run in runs)
    num_accepted = sum(run.num_accepted for run in runs)
    num_draft_runs = sum(run.num_draft_runs for run in runs)
    return [
        _median(decode),
        f"{min(decode):.2f} – {max(decode):.2f}" if decode else _UNKNOWN,
        _median(total),
        _quotient(num_steps + num_accepted, num_steps),
        _quotient(num_accepted, num_candidates),
        _quotient(num_candidates, num_steps),
        _quotient(num_draft_runs, num_steps) if num_draft_runs else _UNKNOWN,
        _UNKNOWN if curve is None else _quotient(*_free_steps(pairs, curve)),
        _same_ids(pairs),
        f"{max(gaps):.3f}" if gaps else _UNKNOWN,
    ]


def _prompt_ratios(pairs: Sequence[Pair], rate: Callable[[Run], float]) -> list[float]:
    """For each prompt the median over the rounds."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for pair in pairs:
        if (ratio := pair.ratio(rate)) is not None:
            ratios[pair.own.prompt.name].append(ratio)
    return [statistics.median(of_prompt) for of_prompt in ratios.values()]


def _free_steps(pairs: Sequence[Pair], curve: CostCurve) -> tuple[float, float]:
    """(seconds of plain steps for the same tokens, seconds of the steps), as the curve has it."""
    plain_s = own_s = 0.0
    for pair in pairs:
        run = pair.own.run
        plain_s += (run.num_steps + run.num_accepted) * curve(1)
        own_s += (run.num_steps - len(run.tree_sizes)) * curve(1)
        own_s += sum(curve(size) for size in run.tree_sizes)
    return plain_s, own_s


def _same_ids(pairs: Sequence[Pair]) -> str:
    known = [pair for pair in pairs if pair.own.run.token_ids and pair.plain.run.token_ids]
    if not known:
        return _UNKNOWN
    same = sum(
        first_difference(pair.plain.run.token_ids, pair.own.run.token_ids) is None for pair in known
    )
    return f"{same} of {len(known)}"


def _median(values: Sequence[float]) -> str:
    return f"**{statistics.median(values):.2f}**" if values else _UNKNOWN


def _quotient(part: float, whole: float) -> str:
    return f"{part / whole:.2f}" if whole else _UNKNOWN


def _joined(values: Iterable[float]) -> str:
    return " | ".join(f"{value:.2f}" for value in values)
