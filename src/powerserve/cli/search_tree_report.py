"""The ranking of a search as text."""

from __future__ import annotations

from collections.abc import Iterator

from powerserve.cli.search_tree_flags import flags_of
from powerserve.evaluate.tree_search.folder import Subject
from powerserve.evaluate.tree_search.ranking import RankedPoint, Ranking

NUM_SHOWN = 10

_HEADINGS = (
    "rank", "tokens/s", "tokens/step", "draft runs/step", "accepted",
    "tree", "top-k", "temp", "p-base", "fan-out", "min-prob", "early-stop",
)  # fmt: skip


def ranking_text(ranking: Ranking, subject: Subject) -> str:
    """What was compared, a table of the best points and the defaults, and the flags to use."""
    return "\n".join([*_conditions(ranking, subject), "", *_table(ranking), "", *_advice(ranking)])


def _conditions(ranking: Ranking, subject: Subject) -> Iterator[str]:
    times = ranking.times
    yield f"{subject.target.name} with {subject.draft.name} as its draft"
    yield f"{len(subject.prompts)} prompts, answers of at most {subject.max_tokens} tokens"
    steps = ", ".join(f"{size}: {ms:.2f}" for size, ms in sorted(times.target_ms.items()))
    yield f"target's steps in ms by tokens: {steps}; draft's step: {times.draft_ms:.2f} ms"
    yield f"on {times.device or 'an unknown device'}"


def _table(ranking: Ranking) -> Iterator[str]:
    """The best points, and the defaults wherever they rank."""
    shown = [point for point in ranking.points if point.rank <= NUM_SHOWN or point.has_defaults]
    rows = [_HEADINGS, *(_row(point) for point in shown)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))


def _row(point: RankedPoint) -> tuple[str, ...]:
    params, counters = point.params, point.counters
    return (
        f"{point.rank}{' (defaults)' if point.has_defaults else ''}",
        f"{point.tokens_per_s:.2f}",
        f"{counters.tokens_per_iteration:.3f}",
        f"{counters.forwards_per_iteration:.3f}",
        f"{counters.acceptance:.1%}",
        str(params.draft_batch_size),
        str(params.top_k),
        f"{params.temperature:g}",
        f"{params.p_base:g}",
        str(params.max_fan_out),
        f"{params.min_prob:g}",
        "yes" if params.early_stop else "no",
    )


def _advice(ranking: Ranking) -> Iterator[str]:
    best, plain = ranking.best, ranking.plain_tokens_per_s
    for default in ranking.defaults:
        yield (
            f"the defaults with {default.params.draft_batch_size} nodes rank {default.rank} of "
            f"{len(ranking.points)}; the best point is "
            f"{best.tokens_per_s / default.tokens_per_s:.2f} times as fast"
        )
    if plain is not None:
        speedup = best.tokens_per_s / plain
        verdict = "" if speedup > 1 else ": trees do not pay here"
        yield (
            f"without speculation: {plain:.2f} tokens/s; "
            f"the best point is {speedup:.2f} times as fast{verdict}"
        )
    yield ""
    yield flags_of(best.params)
