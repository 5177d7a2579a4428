"""A load test's figures as a markdown table, or as JSON with every request."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from powerserve.cli.markdown import markdown_table
from powerserve.evaluate.server_load.chat_request import ChatRecord
from powerserve.evaluate.server_load.plan import LoadPlan
from powerserve.evaluate.server_load.run import LoadRun
from powerserve.evaluate.server_load.summary import LoadSummary, Percentiles, summarise
from powerserve.evaluate.server_load.target import Target

_PERCENTILES = ("p50", "p90", "p99", "max")
Figure = Callable[[LoadSummary], float | None]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was measured; with two targets, the runs took turns."""

    plan: LoadPlan
    targets: Sequence[Target]
    runs: Sequence[LoadRun]

    @property
    def named_runs(self) -> list[tuple[str, list[LoadRun]]]:
        """Each server's URL with its runs that have begun."""
        return [(target.url, self.runs_of(target)) for target in self.targets]

    def runs_of(self, target: Target) -> list[LoadRun]:
        """One server's runs that have begun."""
        return [run for run in self.runs if run.target is target and run.began_s]

    def summaries(self) -> list[LoadSummary]:
        """Figures of each target over all rounds."""
        return [summarise(self.runs_of(target)) for target in self.targets]


def as_json(report: LoadReport) -> dict[str, Any]:
    """Everything as plain data; times in seconds, those of a request since its run began."""
    return {
        "plan": asdict(report.plan),
        "servers": [
            {
                "url": target.url,
                "model": target.model,
                "summary": asdict(summary),
                "rounds": [_run_json(run) for run in report.runs_of(target)],
            }
            for target, summary in zip(report.targets, report.summaries(), strict=True)
        ],
        "ratios": {name: _ratio(report, figure) for name, figure in _figures()}
        if len(report.targets) > 1
        else None,
    }


def as_markdown(report: LoadReport) -> str:
    """What was asked, then a table; with two servers their ratios stand last."""
    parts = [_conditions(report.plan), markdown_table(_rows(report))]
    errors = [
        f"{target.url}: {count} × {kind}"
        for target, summary in zip(report.targets, report.summaries(), strict=True)
        for kind, count in summary.errors.items()
    ]
    if errors:
        parts.append("errors:\n" + "\n".join(f"- {line}" for line in errors))
    return "\n\n".join(parts)


def _conditions(plan: LoadPlan) -> str:
    arrival = f"{plan.num_clients} clients" if plan.rate is None else f"{plan.rate:g} requests/s"
    end = f"{plan.num_requests} requests" if plan.duration_s is None else f"{plan.duration_s:g} s"
    prefix = ""
    if plan.shared_words or plan.distinct_words:
        kind = "shared" if plan.shared_words else "distinct"
        prefix = f" after {plan.shared_words or plan.distinct_words} {kind} ones"
    return (
        f"{arrival}, {end} in a round; questions of {plan.prompt_words} words{prefix}, "
        f"answers of at most {plan.max_tokens} tokens; seed {plan.seed}"
    )


def _rows(report: LoadReport) -> Iterator[list[str]]:
    summaries = report.summaries()
    is_comparison = len(summaries) > 1
    yield ["", *(target.url for target in report.targets), *(["ratio"] if is_comparison else [])]
    yield [
        "requests answered",
        *(str(summary.num_answered) for summary in summaries),
        *([""] if is_comparison else []),
    ]
    for name, figure in _figures():
        cells = [_cell(figure(summary)) for summary in summaries]
        yield [name, *cells, *([_cell(_ratio(report, figure))] if is_comparison else [])]


def _figures() -> Iterator[tuple[str, Figure]]:
    yield "requests/s", attrgetter("requests_per_s")
    yield "prompt tokens/s", attrgetter("prompt_tokens_per_s")
    yield "generated tokens/s", attrgetter("generated_tokens_per_s")
    yield "prompt tokens per request", attrgetter("mean_prompt_tokens")
    yield "of them cached", attrgetter("mean_cached_tokens")
    yield "generated tokens per request", attrgetter("mean_generated_tokens")
    for name in _PERCENTILES:
        yield f"first token, {name} (ms)", partial(_ms, "first_token", name)
    for name in _PERCENTILES:
        yield f"gap between tokens, {name} (ms)", partial(_ms, "gap", name)


def _ms(times: str, percentile: str, summary: LoadSummary) -> float | None:
    percentiles: Percentiles | None = getattr(summary, times)
    if percentiles is None:
        return None
    seconds: float = getattr(percentiles, percentile)
    return 1000 * seconds


def _ratio(report: LoadReport, figure: Figure) -> float | None:
    """The first server's figure by the second's: the median of the rounds that both finished."""
    first, second = (report.runs_of(target) for target in report.targets)
    pairs = [
        (figure(summarise([one])), figure(summarise([other])))
        for one, other in zip(first, second, strict=False)
    ]
    ratios = [one / other for one, other in pairs if one is not None and other]
    return statistics.median(ratios) if ratios else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}"


def _run_json(run: LoadRun) -> dict[str, Any]:
    return {
        "seed": run.plan.seed,
        "duration_s": run.ended_s - run.began_s,
        "requests": [_record_json(record, run.began_s) for record in run.records],
    }


def _record_json(record: ChatRecord, began_s: float) -> dict[str, Any]:
    return asdict(record) | {
        "began_s": record.began_s - began_s,
        "arrivals_s": [arrival - began_s for arrival in record.arrivals_s],
        "ended_s": record.ended_s - began_s,
    }
