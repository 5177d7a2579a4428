"""What kernels make of a machine: PowerServe with its own and with ggml's, and llama.cpp's kin.

    python compare.py MODEL.gguf … --peer FOLDER … --json results.json > results.md

Measures prefill, decode, and what a step costs by its number of tokens; and how fast the machine
reads memory at all. See README.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants import Contestant, LineProcess, peer_contestant, powerserve_contestants
from flags import count, kernel_choices
from memory import MEMORY, memory_reader
from models import Model
from rounds import Test, awake, say, take_turns
from tables import DECODE, MEMORY_READ, PREFILL, WEIGHTS_READ, Results, step_test

from powerserve.core.errors import PowerServeError
from powerserve.core.machine import default_threads
from powerserve.evaluate.conditions import describe_machine
from powerserve.storage.json_file import write_json

DEPTH = 64  # tokens before decoding and before the steps
SIZES = (1, 2, 3, 4, 6, 8, 16, 32)
MAX_PREFILL = 512  # the largest step of all contestants
STEP_BUDGET_S = 0.4  # for the steps of one size in one turn
MEMORY_BYTES = 10**9


def main() -> None:
    """Print the results as markdown; progress goes to standard error."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process stays behind
    arguments = parse_arguments()
    try:
        compare(arguments)
    except PowerServeError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a GGUF file, or a name")
    parser.add_argument(
        "--peer",
        type=Path,
        action="append",
        default=[],
        help="a virtual environment with llama-cpp-python, ik-llama-cpp-python or xllamacpp; "
        "may be repeated",
    )
    parser.add_argument(
        "--kernels",
        type=kernel_choices,
        default=["native", "ggml"],
        help="PowerServe's; the others are compared with the first; default: native,ggml",
    )
    parser.add_argument("--wheel", action="store_true", help="PowerServe with ggml's wheel, too")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("-p", "--prefill", type=count, default=MAX_PREFILL, help="tokens")
    parser.add_argument("-n", "--decode", type=count, default=32, help="tokens of a turn")
    parser.add_argument("-t", "--threads", type=count, default=default_threads())
    parser.add_argument("--seed", type=int, default=1, help="of the order of the turns")
    parser.add_argument("--json", type=Path, help="write every duration to this file")
    arguments = parser.parse_args()
    if arguments.prefill > MAX_PREFILL:
        parser.error(f"-p is the size of one step: at most {MAX_PREFILL}")
    return arguments


def compare(arguments: argparse.Namespace) -> None:
    """Measure model after model."""
    models = [Model.read(name) for name in arguments.models]
    contestants = [
        *powerserve_contestants(arguments.kernels, arguments.wheel),
        *(peer_contestant(folder) for folder in arguments.peer),
    ]
    found: dict[str, Any] = {"machine": asdict(describe_machine()), "models": {}}
    save(arguments.json, found)  # better to fail now than after the measurements
    print_conditions(arguments)
    most_bytes = max(MEMORY_BYTES, *(model.matrix_bytes for model in models))
    with memory_reader(arguments.threads, most_bytes) as memory:
        for model in models:
            results = measure(model, contestants, memory, arguments)
            results.print_tables()
            found["models"][model.name] = asdict(results)
            save(arguments.json, found)
            if not results.samples.is_complete:
                raise KeyboardInterrupt


def save(file: Path | None, found: Mapping[str, Any]) -> None:
    """Write what was found so far to a file, if one is wanted."""
    if file is None:
        return
    try:
        write_json(file, found)
    except OSError as error:
        raise SystemExit(f"{file} cannot be written: {error.strerror}") from None


def print_conditions(arguments: argparse.Namespace) -> None:
    """The machine and what was asked for."""
    machine = describe_machine()
    memory = (machine.memory_bytes or 0) / 2**30
    print("# Kernels\n")
    print(f"- machine: {machine.cpu}, {machine.num_cpus} CPUs, {memory:.0f} GiB; {machine.system}")
    print(f"- load average before: {machine.load_average:.2f}")
    print(
        f"- {arguments.threads} threads, KV cache F16, flash attention; {arguments.rounds} rounds"
    )


def measure(
    model: Model,
    contestants: Sequence[Contestant],
    memory: LineProcess,
    arguments: argparse.Namespace,
) -> Results:
    """All rounds on one model."""
    say(f"{model.name}\n")
    with started(contestants, model, arguments.threads) as processes:
        systems = {name: process.greeting.strip() for name, process in processes.items()}
        next_ids = {
            contestant.name: warm_up(processes[contestant.name], contestant, model, arguments)
            for contestant in contestants
        }
        tests = list_tests(model, contestants, arguments)
        samples = take_turns({**processes, MEMORY: memory}, tests, arguments.rounds, arguments.seed)
    return Results(
        model.name,
        arguments.prefill,
        model.matrix_bytes,
        MEMORY_BYTES,
        SIZES,
        systems,
        next_ids,
        samples,
    )


@contextmanager
def started(
    contestants: Iterable[Contestant], model: Model, num_threads: int
) -> Iterator[Mapping[str, LineProcess]]:
    """The contestants' processes by name, loaded one after the other and paused."""
    with ExitStack() as stack:
        processes = {}
        for contestant in contestants:
            say(f"loading {contestant.name}\n")
            process = contestant.start(Path(model.path), num_threads)
            stack.callback(process.close)
            process.pause()
            processes[contestant.name] = process
        yield processes


def warm_up(
    process: LineProcess, contestant: Contestant, model: Model, arguments: argparse.Namespace
) -> list[int]:
    """Compile what has to be compiled; the continuations of the model's text, if they are told."""
    say(f"warming up {process.name}\n")
    with awake(process):
        process.ask(["prefill", arguments.prefill])
        process.ask(["decode", DEPTH, 1])
        return process.ask(["predict", model.text_ids]) if contestant.has_steps else []


def list_tests(
    model: Model, contestants: Iterable[Contestant], arguments: argparse.Namespace
) -> list[Test]:
    """What a round consists of."""
    everyone = tuple(contestant.name for contestant in contestants)
    with_steps = tuple(contestant.name for contestant in contestants if contestant.has_steps)
    return [
        Test(MEMORY_READ, MEMORY_BYTES, (MEMORY,)),
        Test(WEIGHTS_READ, model.matrix_bytes, (MEMORY,)),
        Test(PREFILL, ["prefill", arguments.prefill], everyone),
        Test(DECODE, ["decode", DEPTH, arguments.decode], everyone),
        *(
            Test(step_test(size), ["steps", DEPTH, size, STEP_BUDGET_S], with_steps)
            for size in SIZES
        ),
    ]


if __name__ == "__main__":
    main()
