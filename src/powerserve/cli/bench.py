"""Measure prefill and decode speed, as an idle machine would serve one user.

powerserve bench                                the built-in model: pp512 and tg128
powerserve bench -m MODEL -p 2048 -n 64 -r 3    other lengths, fewer repetitions
powerserve bench --batch-curve 1,2,4,8,16       what a step costs with more tokens in it
powerserve bench --overhead                     what a step costs outside the kernels
powerserve bench --profile                      what each operation of a step costs
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.trace import add_trace_flag, tracer_from_flags
from powerserve.core.errors import UsageError

if TYPE_CHECKING:
    from powerserve.cli.bench_report import Report
    from powerserve.core.tracing import Tracer
    from powerserve.engine.loader import LoadedEngine, LoadOptions
    from powerserve.evaluate.benchmark import BenchmarkPlan
    from powerserve.evaluate.operation_profile import StepProfile
    from powerserve.storage.resolve import ModelSource

OVERHEAD_STEPS = 200


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags."""
    group = parser.add_argument_group("benchmark")
    group.add_argument(
        "-p",
        "--prefill",
        type=options.whole_number,
        default=512,
        metavar="N",
        help="prompt tokens (default: 512; 0: not measured)",
    )
    group.add_argument(
        "-n",
        "--decode",
        type=options.whole_number,
        default=128,
        metavar="N",
        help="tokens decoded one by one (default: 128; 0: not measured)",
    )
    group.add_argument(
        "-r",
        "--repeats",
        type=options.positive_number,
        default=5,
        metavar="N",
        help="repetitions after one for warming up (default: 5)",
    )
    group.add_argument(
        "--depth",
        type=options.whole_number,
        default=0,
        metavar="N",
        help="tokens in the context before the measurement (default: 0)",
    )
    group.add_argument(
        "--batch-curve",
        type=_batch_sizes,
        default=(),
        metavar="N,N,…",
        help="also time steps of N sequences with one token each",
    )
    group.add_argument(
        "--overhead", action="store_true", help="also say what a step costs in Python"
    )
    group.add_argument(
        "--profile", action="store_true", help="also time the operations of steps one by one"
    )
    group.add_argument(
        "-o", "--output", choices=["md", "json"], default="md", help="json: with every sample"
    )
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    add_trace_flag(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
    from powerserve.cli.bench_report import as_json, as_markdown
    from powerserve.llm import DEFAULT_MODEL

    source = options.find_model(arguments, DEFAULT_MODEL)
    with tracer_from_flags(arguments, source.weights) as tracer:
        report = _measure(arguments, source, tracer)
    if arguments.output == "json":
        print(json.dumps(as_json(report), indent=2, ensure_ascii=False))
    else:
        print(as_markdown(report))
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _measure(arguments: Namespace, source: ModelSource, tracer: Tracer) -> Report:
    from powerserve.cli.bench_report import Report
    from powerserve.cli.interrupt import interruptible
    from powerserve.engine.loader import load_engine
    from powerserve.evaluate.benchmark import run_benchmark
    from powerserve.evaluate.conditions import describe_kernels, describe_machine
    from powerserve.evaluate.overhead import measure_overhead

    plan = _plan(arguments)
    machine = describe_machine()
    loaded = load_engine(source, _load_options(arguments, source, plan), tracer=tracer)
    try:
        with interruptible(loaded.backend):
            result = run_benchmark(loaded.engine, plan, partial(_say_round, repeats=plan.repeats))
            overhead = measure_overhead(loaded, OVERHEAD_STEPS) if arguments.overhead else None
            profiles = _profiles(loaded, plan) if arguments.profile else []
        return Report(
            machine=machine,
            kernels=describe_kernels(loaded.backend),
            source=source,
            options=loaded.options,
            num_threads=loaded.num_threads,
            plan=plan,
            result=result,
            overhead=overhead,
            profiles=profiles,
        )
    finally:
        loaded.close()


def _profiles(loaded: LoadedEngine, plan: BenchmarkPlan) -> list[StepProfile]:
    """Of the first step of the prompt, and of a decode step."""
    from powerserve.evaluate.operation_profile import profile_step
    from powerserve.evaluate.scoring import StepSettings

    settings = StepSettings(loaded.options.batch_size, loaded.options.kv_dtype)
    sizes = [min(plan.prefill_tokens, settings.batch_size), min(plan.decode_tokens, 1)]
    return [
        profile_step(
            loaded.model,
            num_tokens=size,
            depth=plan.depth,
            repeats=plan.repeats,
            settings=settings,
        )
        for size in sizes
        if size
    ]


def _plan(arguments: Namespace) -> BenchmarkPlan:
    from powerserve.evaluate.benchmark import BenchmarkPlan

    wanted = (arguments.prefill, arguments.decode, arguments.batch_curve, arguments.overhead)
    if not any(wanted):
        raise UsageError("there is nothing to measure: -p and -n are both 0")
    return BenchmarkPlan(
        prefill_tokens=arguments.prefill,
        decode_tokens=arguments.decode,
        depth=arguments.depth,
        batch_sizes=arguments.batch_curve,
        repeats=arguments.repeats,
    )


def _load_options(arguments: Namespace, source: ModelSource, plan: BenchmarkPlan) -> LoadOptions:
    """The flags' options, with room for what is measured."""
    chosen = options.load_options(arguments, source.hparams)
    overhead = 2 * OVERHEAD_STEPS if arguments.overhead else 0
    return replace(
        chosen,
        context_size=max(chosen.context_size or 0, plan.context_size, overhead),
        max_sequences=plan.max_sequences,
    )


def _batch_sizes(text: str) -> tuple[int, ...]:
    """argparse type: `1,2,4`; 1 is always there, because the others are compared with it."""
    try:
        sizes = {1, *map(int, text.split(","))}
    except ValueError:
        sizes = {0}
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, as in 1,2,4,8")
    return tuple(sorted(sizes))


def _say_round(number: int, repeats: int) -> None:
    """On a terminal, say how far the measurement is."""
    if sys.stderr is not None and sys.stderr.isatty():
        text = f"repetition {number} of {repeats}" if number else "warming up"
        print(f"\r\x1b[K{text}", end="" if number < repeats else "…\n", file=sys.stderr, flush=True)
