"""PowerServe against llama.cpp: same file, same machine, same settings, taking turns.

    python compare.py MODEL.gguf … --stock-peer PYTHON --native-peer FOLDER > results.md

Each round runs every contestant once, in a process of its own, so that a change of the machine's
speed meets all of them; the ratios are taken within a round. See README.md for the peers.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from contestants import PROMPT, Contestant, Figures, LlamaCpp, PowerServe, Setting, XLlamaCpp

from powerserve.backend.ggml.locate import native_folder, wheel_folder
from powerserve.core.machine import cpu_name, total_memory

Pair = tuple[Contestant, Contestant]
FIRST_TOKEN_ROUNDS = 9

Result = TypeVar("Result")


def main() -> None:
    """Print the results as markdown; progress goes to standard error."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as scratch:
        pairs = find_pairs(arguments, Path(scratch))
        print_conditions(arguments)
        for model in arguments.models:
            setting = Setting(
                model,
                arguments.threads,
                arguments.kv_type,
                arguments.prefill,
                arguments.decode,
                arguments.repeats,
                arguments.sizes,
            )
            print(f"\n## {model.stem}")
            for pair in pairs:
                compare(pair, setting, arguments.rounds)
            compare_first_tokens(pairs, setting)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--stock-peer", type=Path, help="a Python that has xllamacpp")
    parser.add_argument("--native-peer", type=Path, help="a folder with llama.cpp's include, lib")
    parser.add_argument("--native", type=Path, default=native_folder(), help="our native ggml")
    parser.add_argument("-t", "--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("-p", "--prefill", type=int, default=512)
    parser.add_argument("-n", "--decode", type=int, default=128)
    parser.add_argument("-r", "--repeats", type=int, default=3, help="within one process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kv-type", default="f16", choices=["f16", "f32", "q8_0"])
    parser.add_argument(
        "--sizes",
        default=(),
        type=lambda text: tuple(map(int, text.split(","))),
        help="a batch curve for the native pair, as in 1,2,4,8",
    )
    return parser.parse_args()


def find_pairs(arguments: argparse.Namespace, scratch: Path) -> list[Pair]:
    """Stock against stock and native against native, as far as they are there."""
    pairs: list[Pair] = []
    wheel = wheel_folder()
    if wheel and arguments.stock_peer:
        stock = XLlamaCpp("llama.cpp, stock wheel", arguments.stock_peer)
        pairs.append((PowerServe("PowerServe, stock wheel", wheel), stock))
    if arguments.native and arguments.native_peer:
        native = LlamaCpp("llama.cpp, native build", arguments.native_peer, scratch)
        pairs.append((PowerServe("PowerServe, native build", arguments.native), native))
    return pairs


def compare(pair: Pair, setting: Setting, rounds: int) -> None:
    """Interleaved runs of two contestants as a table."""
    with_curve = all(contestant.has_curve for contestant in pair)
    if not with_curve:
        setting = replace(setting, sizes=())
    runs = list(_interleaved(pair, lambda contestant: contestant.bench(setting), rounds))
    ours, theirs = pair
    print(f"\n### {ours.name} : {theirs.name}\n")
    for contestant, figures in zip(pair, runs[0], strict=True):
        print(f"- {contestant.name}: {figures.system}")
    print(f"\n| tokens/s | {ours.name} | {theirs.name} | ratio | ratios of the rounds |")
    print("|---|---:|---:|---:|---|")
    for test in (f"pp{setting.prefill}", f"tg{setting.decode}"):
        print(_row(test, [(a.rates[test], b.rates[test]) for a, b in runs], "{:.1f}"))
    memory = [(a.peak_memory_bytes / 1e6, b.peak_memory_bytes / 1e6) for a, b in runs]
    print(_row("peak memory, MB", memory, "{:.0f}"))
    if setting.sizes:
        print_curve(pair, setting, runs)


def print_curve(pair: Pair, setting: Setting, runs: list[tuple[Figures, Figures]]) -> None:
    """The step times by number of tokens."""
    print(f"\n| ms per step, tokens: | {' | '.join(map(str, setting.sizes))} |")
    print("|---" * (len(setting.sizes) + 1) + "|")
    for index, contestant in enumerate(pair):
        steps = [
            statistics.median(run[index].steps_ms[f"batch{size}"] for run in runs)
            for size in setting.sizes
        ]
        cells = (f"{step:.2f} ({step / steps[0]:.2f})" for step in steps)
        print(f"| {contestant.name} | {' | '.join(cells)} |")


def compare_first_tokens(pairs: Sequence[Pair], setting: Setting) -> None:
    """From the start of the process to the first byte of the answer, files in the page cache."""
    contestants = [contestant for pair in pairs for contestant in pair]
    rounds = list(
        _interleaved(contestants, lambda c: c.first_token(setting), FIRST_TOKEN_ROUNDS + 1)
    )[1:]
    print(f'\n### First token of "{PROMPT}"\n')
    print("| whole process | until the first token, s | fastest | peak memory, MB | answer |")
    print("|---|---:|---:|---:|---|")
    for index, contestant in enumerate(contestants):
        runs = [run[index] for run in rounds]
        seconds = [run.first_output_s for run in runs]
        memory = statistics.median(run.peak_memory_bytes for run in runs) / 1e6
        cells = f"{statistics.median(seconds):.3f} | {min(seconds):.3f} | {memory:.0f}"
        print(f"| {contestant.name} | {cells} | {runs[0].output.strip()!r} |", flush=True)


def print_conditions(arguments: argparse.Namespace) -> None:
    """The machine and what was asked for."""
    memory = (total_memory() or 0) / 2**30
    print(f"- machine: {cpu_name()}, {os.cpu_count()} CPUs, {memory:.0f} GiB; ", end="")
    print(f"{platform.system()} {platform.release()}, Python {platform.python_version()}")
    print(f"- load average before: {os.getloadavg()[0]:.2f}")
    print(f"- {arguments.threads} threads, KV cache {arguments.kv_type}, flash attention, ", end="")
    print(f"{arguments.rounds} rounds of {arguments.repeats} repetitions; medians")


def _interleaved(
    contestants: Sequence[Contestant], act: Callable[[Contestant], Result], rounds: int
) -> Iterable[tuple[Result, ...]]:
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        yield tuple(act(contestant) for contestant in contestants)


def _row(name: str, values: list[tuple[float, float]], form: str) -> str:
    ours, theirs = (statistics.median(column) for column in zip(*values, strict=True))
    ratios = [a / b for a, b in values]
    listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
    cells = f"{form.format(ours)} | {form.format(theirs)} | {statistics.median(ratios):.2f}"
    return f"| {name} | {cells} | {listed} |"


if __name__ == "__main__":
    main()
