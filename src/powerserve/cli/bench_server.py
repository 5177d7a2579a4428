"""Measure a server with OpenAI's API under load, as its clients see it.

powerserve bench-server http://127.0.0.1:8080                    4 clients, 64 requests
powerserve bench-server URL -c 16 --duration 60                  16 clients for a minute
powerserve bench-server URL --rate 2 --shared-prefix 1000        two requests per second on average
powerserve bench-server URL --compare URL2 --rounds 3            two servers, taking turns

Prompts are random words, nearly one token each; the figures are the server's own counts.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options

if TYPE_CHECKING:
    from powerserve.evaluate.server_load.plan import LoadPlan
    from powerserve.evaluate.server_load.run import LoadRun
    from powerserve.evaluate.server_load.target import Target
    from powerserve.storage.progress import Advance

INTERRUPTED = 130
KEY_VARIABLE = "POWERSERVE_API_KEY"
DEFAULT_REQUESTS = 64


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("url", metavar="URL", help="of the server, as in http://127.0.0.1:8080")
    parser.add_argument("-m", "--model", default="", help="name of the model to ask for")
    parser.add_argument("--compare", metavar="URL", help="measure this server too, in turns")
    parser.add_argument("--compare-model", default="", metavar="MODEL", help="its model")
    parser.add_argument("--api-key", metavar="KEY", help=f"(default: the variable {KEY_VARIABLE})")
    _add_load_flags(parser)
    _add_prompt_flags(parser)
    parser.add_argument("--json", action="store_true", help="print JSON with every request's times")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the distributions (.png, .svg, .pdf)"
    )


def execute(arguments: Namespace) -> int:
    """Run the command; Ctrl-C ends the measurement and shows what there is."""
    from powerserve.cli.bench_server_report import LoadReport, as_json, as_markdown
    from powerserve.evaluate.plot_file import check_plot

    if arguments.plot is not None:
        check_plot(arguments.plot)  # better now than after the measurement
    plan, targets = _plan(arguments), _targets(arguments)
    runs, status = _measure(targets, plan, arguments.rounds)
    report = LoadReport(plan, targets, runs)
    print(json.dumps(as_json(report), indent=2) if arguments.json else as_markdown(report))
    if arguments.plot is not None:
        from powerserve.evaluate.server_load.plot import plot_load

        plot_load(report.named_runs, arguments.plot)
    return status


def _add_load_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    arrival = group.add_mutually_exclusive_group()
    arrival.add_argument(
        "-c",
        "--clients",
        type=options.positive_number,
        default=4,
        metavar="N",
        help="each asks again when it has its answer (default: 4)",
    )
    arrival.add_argument(
        "--rate",
        type=options.positive_amount("requests"),
        metavar="R",
        help="requests per second at random times, answered or not (a Poisson process)",
    )
    end = group.add_mutually_exclusive_group()
    end.add_argument(
        "-n",
        "--requests",
        type=options.positive_number,
        metavar="N",
        help=f"in each round (default: {DEFAULT_REQUESTS})",
    )
    end.add_argument(
        "--duration", type=options.seconds, metavar="S", help="begin no request after S seconds"
    )
    group.add_argument(
        "--rounds", type=options.positive_number, default=1, metavar="N", help="(default: 1)"
    )
    group.add_argument(
        "--warm-up",
        type=options.whole_number,
        default=2,
        metavar="N",
        help="requests before each round that do not count (default: 2)",
    )
    group.add_argument(
        "--timeout", type=options.seconds, default=600.0, metavar="S", help="(default: 600)"
    )


def _add_prompt_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("prompts and answers")
    group.add_argument(
        "-p",
        "--prompt",
        type=options.positive_number,
        default=128,
        metavar="N",
        help="words of each question (default: 128)",
    )
    prefix = group.add_mutually_exclusive_group()
    prefix.add_argument(
        "--shared-prefix",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="words of a system prompt that all requests share",
    )
    prefix.add_argument(
        "--distinct-prefix",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="words of a system prompt of each request's own",
    )
    group.add_argument(
        "--max-tokens",
        type=options.positive_number,
        default=64,
        metavar="N",
        help="tokens of each answer (default: 64)",
    )
    group.add_argument(
        "--may-end",
        action="store_true",
        help="let answers end earlier; otherwise `ignore_eos` asks for all tokens",
    )
    group.add_argument(
        "--seed",
        type=options.whole_number,
        metavar="N",
        help="of prompts and arrivals (default: a new one, as the server may have cached old ones)",
    )


def _plan(arguments: Namespace) -> LoadPlan:
    from powerserve.evaluate.server_load.plan import LoadPlan

    has_end = arguments.requests or arguments.duration
    return LoadPlan(
        num_requests=arguments.requests if has_end else DEFAULT_REQUESTS,
        duration_s=arguments.duration,
        num_clients=arguments.clients,
        rate=arguments.rate,
        prompt_words=arguments.prompt,
        shared_words=arguments.shared_prefix,
        distinct_words=arguments.distinct_prefix,
        max_tokens=arguments.max_tokens,
        ignore_eos=not arguments.may_end,
        num_warm_up=arguments.warm_up,
        timeout_s=arguments.timeout,
        seed=secrets.randbits(32) if arguments.seed is None else arguments.seed,
    )


def _targets(arguments: Namespace) -> list[Target]:
    from powerserve.evaluate.server_load.target import Target

    key = arguments.api_key or os.environ.get(KEY_VARIABLE, "")
    targets = [Target(arguments.url, arguments.model, key)]
    if arguments.compare is not None:
        targets.append(Target(arguments.compare, arguments.compare_model, key))
    return targets


def _measure(targets: list[Target], plan: LoadPlan, num_rounds: int) -> tuple[list[LoadRun], int]:
    """The runs, as far as they got, and the exit status."""
    from powerserve.evaluate.server_load.run import check_target, interleaved

    async def check() -> None:
        for target in targets:
            await check_target(target, plan.timeout_s)

    async def measure(runs: list[LoadRun]) -> None:
        for run in runs:
            await run.execute()

    asyncio.run(check())
    with _progress(plan, num_rounds * len(targets)) as advance:
        runs = interleaved(targets, plan, num_rounds, advance)
        try:
            asyncio.run(measure(runs))
        except KeyboardInterrupt:
            print("interrupted: these are the requests until then", file=sys.stderr)
            return runs, INTERRUPTED
    return runs, 0


@contextmanager
def _progress(plan: LoadPlan, num_runs: int) -> Iterator[Advance]:
    from powerserve.storage.progress import console_progress

    progress = console_progress()
    if plan.num_requests is None:
        progress.note(f"measuring for {num_runs * (plan.duration_s or 0):g} seconds")
        yield lambda count: None
        return
    with progress.count("requests", num_runs * plan.num_requests) as advance:
        yield advance
