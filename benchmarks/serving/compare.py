"""PowerServe's server against llama.cpp's: same file, same machine, same requests, taking turns.

    python compare.py MODEL.gguf … --xllamacpp PYTHON --llama-server PROGRAM > results.md

See README.md for the peers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scenarios import Comparison, Disturbance, PrefixGain, disturbance, prefix_gain, throughput
from servers import Contestant, Setting, llama_server, powerserve, running, xllamacpp

from powerserve.backend.ggml.locate import native_folder, wheel_folder
from powerserve.cli.markdown import markdown_table
from powerserve.core.machine import cpu_name, load_average
from powerserve.evaluate.server_load.run import check_target
from powerserve.evaluate.server_load.summary import LoadSummary
from powerserve.evaluate.server_load.target import Target

Pair = tuple[Contestant, Contestant]


def main() -> None:
    """Print the results as markdown; progress goes to standard error."""
    arguments = parse_arguments()
    print_conditions(arguments)
    results = []
    for model in arguments.models:
        setting = Setting(model, arguments.threads, arguments.context, max(arguments.clients))
        for pair in find_pairs(arguments, setting):
            print(f"\n## {model.stem}: {pair[0].name} against {pair[1].name}", flush=True)
            results.append(compare(pair, arguments) | {"model": model.stem})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--xllamacpp", type=Path, help="a Python that has xllamacpp")
    parser.add_argument("--llama-server", type=Path, help="a llama-server built for this machine")
    parser.add_argument("--native", type=Path, default=native_folder(), help="our native ggml")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-c", "--context", type=int, default=8192, help="cells of each server")
    parser.add_argument(
        "--clients", default=(1, 4, 16), type=lambda text: tuple(map(int, text.split(",")))
    )
    parser.add_argument("--requests", type=int, default=4, help="of each client in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long-prompts", type=int, default=5, help="beside running streams")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


def find_pairs(arguments: argparse.Namespace, setting: Setting) -> Iterator[Pair]:
    """Stock against stock and native against native, as far as they are there."""
    if arguments.xllamacpp:
        ours = powerserve(setting, "PowerServe (wheel)", wheel_folder())
        yield ours, xllamacpp(setting, "llama.cpp (xllamacpp)", arguments.xllamacpp)
    if arguments.llama_server:
        if arguments.native is None:
            raise SystemExit("there is no native ggml; `powerserve build-native` makes one")
        ours = powerserve(setting, "PowerServe (native)", arguments.native)
        yield ours, llama_server(setting, "llama.cpp (native)", arguments.llama_server)


def compare(pair: Pair, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both servers run all the time; only one of them is asked at a time."""
    with tempfile.TemporaryDirectory() as logs, ExitStack() as stack:
        targets = [
            Target(stack.enter_context(running(each, Path(logs) / f"{number}.log")))
            for number, each in enumerate(pair)
        ]
        check_all(targets)
        names = [each.name for each in pair]
        loads = [
            throughput(targets, clients, arguments.requests, arguments.rounds, arguments.seed)
            for clients in arguments.clients
        ]
        show_table(throughput_rows(loads, names))
        gains = [prefix_gain(each, 6, arguments.rounds, arguments.seed) for each in targets]
        show_table(prefix_rows(gains, names))
        waits = [disturbance(each, arguments.long_prompts, arguments.seed) for each in targets]
        show_table(disturbance_rows(waits, names))
    return {
        "servers": names,
        "throughput": [asdict(load) for load in loads],
        "prefix": [asdict(gain) for gain in gains],
        "disturbance": [asdict(wait) for wait in waits],
    }


def check_all(targets: Sequence[Target]) -> None:
    """Stop at once if a server does not answer a chat."""
    for target in targets:
        asyncio.run(check_target(target, timeout_s=120))


def throughput_rows(loads: Sequence[Comparison], names: Sequence[str]) -> Iterator[list[str]]:
    """Generated tokens per second, and how long clients waited."""
    ours, theirs = names
    yield ["clients", f"{ours}, tokens/s", f"{theirs}, tokens/s", "ratio", "lowest – highest",
           "first token p50 (ms)", "gap p99 (ms)", "errors"]  # fmt: skip
    for load in loads:
        ratios = load.throughput_ratios
        yield [
            str(load.plan.num_clients),
            f"{statistics.median(each.generated_tokens_per_s for each in load.ours):.1f}",
            f"{statistics.median(each.generated_tokens_per_s for each in load.theirs):.1f}",
            f"**{statistics.median(ratios):.2f}**",
            f"{min(ratios):.2f} – {max(ratios):.2f}",
            _both(load, "first_token", "p50"),
            _both(load, "gap", "p99"),
            " / ".join(str(_num_errors(side)) for side in (load.ours, load.theirs)),
        ]


def prefix_rows(gains: Sequence[PrefixGain], names: Sequence[str]) -> Iterator[list[str]]:
    """Medians of the time to first token."""
    yield ["system prompt of 1,000 words", "distinct (ms)", "shared (ms)", "gain"]
    for name, gain in zip(names, gains, strict=True):
        cells = [f"{1000 * gain.new_s:.0f}", f"{1000 * gain.known_s:.0f}"]
        yield [name, *cells, f"**{gain.gain:.1f}**"]


def disturbance_rows(waits: Sequence[Disturbance], names: Sequence[str]) -> Iterator[list[str]]:
    """Gaps of running streams, alone and beside a long prompt."""
    yield ["gaps of 4 streams (ms)", "alone p50", "alone p99", "beside 4,000 words p50",
           "p99", "max", "gaps", "their first token (ms)"]  # fmt: skip
    for name, wait in zip(names, waits, strict=True):
        alone, beside = wait.alone, wait.beside
        times = (alone.p50, alone.p99, beside.p50, beside.p99, beside.max)
        cells = [f"{1000 * seconds:.0f}" for seconds in times]
        yield [name, *cells, str(wait.num_gaps), f"{1000 * wait.long_first_token_s:.0f}"]


def print_conditions(arguments: argparse.Namespace) -> None:
    """Where this was measured."""
    print(f"- {cpu_name()}, {arguments.threads} threads, load average {load_average():.2f}")
    print(f"- {platform.system()} {platform.release()}, Python {platform.python_version()}")
    print(f"- {arguments.context} cells, {arguments.rounds} rounds, seed {arguments.seed}")


def show_table(rows: Iterator[list[str]]) -> None:
    """Print a table on its own."""
    print(file=sys.stderr)
    print(f"\n{markdown_table(rows)}", flush=True)


def _both(load: Comparison, times: str, percentile: str) -> str:
    """A waiting time of both servers: the median of the rounds."""
    medians = []
    for side in (load.ours, load.theirs):
        found = [getattr(each, times) for each in side]
        medians.append(statistics.median(getattr(each, percentile) for each in found if each))
    return " / ".join(f"{1000 * seconds:.0f}" for seconds in medians)


def _num_errors(side: Sequence[LoadSummary]) -> int:
    return sum(sum(each.errors.values()) for each in side)


if __name__ == "__main__":
    main()
