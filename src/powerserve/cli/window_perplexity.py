"""llama.cpp's ways of `powerserve perplexity`: windows of a text, and comparisons of two models."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.output_file import check_target
from powerserve.cli.prompt import read_prompt
from powerserve.core.errors import UsageError
from powerserve.storage import atomic
from powerserve.storage.copying import file_errors
from powerserve.storage.progress import console_progress

if TYPE_CHECKING:
    from powerserve.backend.base import Int32Array
    from powerserve.evaluate.divergence import Comparison
    from powerserve.evaluate.scoring import StepSettings
    from powerserve.llm import LLM
    from powerserve.storage.resolve import ModelSource


def add_window_flags(parser: ArgumentParser) -> None:
    """Flags that choose llama.cpp's protocol, with its names."""
    group = parser.add_argument_group("windows, as llama.cpp measures")
    group.add_argument(
        "--chunked",
        action="store_true",
        help="compute windows of -c tokens (default: 512), of which the second half counts",
    )
    group.add_argument(
        "--chunks", type=options.positive_number, metavar="N", help="use at most N windows"
    )
    group.add_argument(
        "--compare-with", metavar="BASE", help="compare with this model, such as the unquantised"
    )
    group.add_argument(
        "--kl-divergence-base",
        type=Path,
        metavar="FILE",
        help="record the model's predictions in FILE, to compare others with",
    )
    group.add_argument(
        "--kl-divergence",
        action="store_true",
        help="compare with what --kl-divergence-base recorded; the text is that of the file",
    )


def wants_windows(arguments: Namespace) -> bool:
    """Whether one of the flags was given."""
    return bool(
        arguments.chunked
        or arguments.chunks
        or arguments.compare_with
        or arguments.kl_divergence_base
        or arguments.kl_divergence
    )


def measure_windows(arguments: Namespace) -> int:
    """Do what the flags say."""
    from powerserve.llm import DEFAULT_MODEL

    if arguments.kl_divergence and not arguments.kl_divergence_base:
        raise UsageError("--kl-divergence needs the file to compare with: --kl-divergence-base")
    if arguments.compare_with and arguments.kl_divergence_base:
        raise UsageError("give either --compare-with or --kl-divergence-base")
    source = options.find_model(arguments, DEFAULT_MODEL)
    if arguments.kl_divergence:
        _compare_with_file(arguments, source)
    elif arguments.compare_with:
        _compare_models(arguments, source)
    elif arguments.kl_divergence_base:
        _record(arguments, source)
    else:
        _measure(arguments, source)
    return 0


def _measure(arguments: Namespace, source: ModelSource) -> None:
    from powerserve.evaluate.perplexity import window_perplexity
    from powerserve.evaluate.windows import started_windows

    text = read_prompt(arguments)
    with _loaded(arguments, source, _window(arguments)) as llm:
        windows = _text_windows(arguments, llm, text)
        points = window_perplexity(
            llm.loaded.model,
            started_windows(llm.loaded.tokenizer, windows),
            _step_settings(arguments),
        )
        for number, point in enumerate(points, start=1):
            print(f"[{number}/{len(windows)}] {point.value:.4f}", file=sys.stderr, flush=True)
        print(f"perplexity: {point.value:.4f} ± {point.error:.5f}")


def _record(arguments: Namespace, source: ModelSource) -> None:
    from powerserve.evaluate.log_probability_file import write_log_probabilities
    from powerserve.evaluate.scoring import window_logits
    from powerserve.evaluate.windows import started_windows

    target: Path = arguments.kl_divergence_base
    text = read_prompt(arguments)
    check_target(target, source.weights, arguments.prompt_file)
    with _loaded(arguments, source, _window(arguments)) as llm:
        windows = _text_windows(arguments, llm, text)
        predictions = window_logits(
            llm.loaded.model,
            started_windows(llm.loaded.tokenizer, windows),
            _step_settings(arguments),
        )
        with (
            file_errors(f"{target} cannot be written"),
            atomic.new_file(target) as file,
            console_progress().count("predictions", _num_predictions(windows)) as advance,
        ):
            vocab_size = llm.loaded.config.vocab_size
            logits = (rows for _, rows in predictions)
            done = 0
            for written in write_log_probabilities(file, windows, vocab_size, logits):
                advance(written - done)
                done = written
    print(f"{target}: {done} predictions of {source.name}")


def _compare_with_file(arguments: Namespace, source: ModelSource) -> None:
    from powerserve.evaluate.compare_models import compare_with_file
    from powerserve.evaluate.log_probability_file import open_log_probabilities
    from powerserve.evaluate.windows import started_windows

    base = open_log_probabilities(arguments.kl_divergence_base)
    with _loaded(arguments, source, base.windows.shape[1]) as llm:
        _check_vocabulary(llm, base.vocab_size, str(base.path))
        parts = compare_with_file(
            llm.loaded.model,
            base,
            started_windows(llm.loaded.tokenizer, base.windows),
            _step_settings(arguments),
        )
        _report(parts, base.windows, source.name, str(base.path))


def _compare_models(arguments: Namespace, source: ModelSource) -> None:
    from powerserve.evaluate.compare_models import compare_models
    from powerserve.evaluate.windows import started_windows
    from powerserve.llm import locate_model

    base_source = locate_model(arguments.compare_with, work_folder=arguments.work_folder)
    text = read_prompt(arguments)
    window = _window(arguments)
    with (
        _loaded(arguments, source, window) as llm,
        _loaded(arguments, base_source, window) as base,
    ):
        _check_vocabulary(llm, base.loaded.config.vocab_size, base_source.name)
        windows = _text_windows(arguments, llm, text)
        if windows.tolist() != _text_windows(arguments, base, text).tolist():
            raise UsageError(
                f"{source.name} and {base_source.name} cut the text into different tokens, "
                "so that their predictions cannot be compared"
            )
        parts = compare_models(
            llm.loaded.model,
            base.loaded.model,
            started_windows(llm.loaded.tokenizer, windows),
            _step_settings(arguments),
        )
        _report(parts, windows, source.name, base_source.name)


def _report(parts: Iterator[Comparison], windows: Int32Array, name: str, base: str) -> None:
    from powerserve.cli.divergence_report import report_lines
    from powerserve.evaluate.divergence import joined

    done: list[Comparison] = []
    with console_progress().count("predictions", _num_predictions(windows)) as advance:
        for part in parts:
            done.append(part)
            advance(part.num_tokens)
    print("\n".join(report_lines(joined(done), name=name, base=base)))


@contextmanager
def _loaded(arguments: Namespace, source: ModelSource, window: int) -> Iterator[LLM]:
    """The model, stopped by Ctrl-C even in the middle of a step."""
    from powerserve.cli.interrupt import interruptible
    from powerserve.llm import LLM
    from powerserve.speculative.options import SpeculationMode, SpeculationOptions

    load_options = replace(
        options.load_options(arguments, source.hparams),
        context_size=window,
        max_sequences=1,
        speculation=SpeculationOptions(mode=SpeculationMode.OFF),
    )
    with LLM(source, load_options) as llm, interruptible(llm.loaded.backend):
        yield llm


def _check_vocabulary(llm: LLM, base_size: int, base: str) -> None:
    size = llm.loaded.config.vocab_size
    if size != base_size:
        raise UsageError(
            f"the vocabulary of {llm.loaded.source.name} has {size:,} tokens and that of {base} "
            f"{base_size:,}: only models of one vocabulary can be compared"
        )


def _text_windows(arguments: Namespace, llm: LLM, text: str) -> Int32Array:
    from powerserve.evaluate.windows import text_windows

    return text_windows(llm.loaded.tokenizer, text, _window(arguments), arguments.chunks)


def _window(arguments: Namespace) -> int:
    from powerserve.evaluate.windows import DEFAULT_WINDOW

    return arguments.ctx_size or DEFAULT_WINDOW


def _num_predictions(windows: Int32Array) -> int:
    from powerserve.evaluate.perplexity import predictions_per_window

    return len(windows) * predictions_per_window(windows.shape[1])


def _step_settings(arguments: Namespace) -> StepSettings:
    from powerserve.evaluate.scoring import StepSettings

    batch_size = arguments.batch_size or options.DEFAULT_BATCH_SIZE
    return StepSettings(batch_size, options.KV_TYPES[arguments.kv_type])
