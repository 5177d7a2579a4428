"""Measure on a text which weights matter most, so that `powerserve quantize` can spare them.

  powerserve imatrix -m model-f16.gguf -f text.txt -o model.imatrix
  powerserve quantize model-f16.gguf small.gguf IQ4_XS --imatrix model.imatrix

The text should resemble what the model will be used for; 100 windows of 512 tokens are plenty. A
run that was stopped is continued by the same command. Files are read and written in llama.cpp's
format.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from powerserve.cli import options
from powerserve.cli.output_file import check_target
from powerserve.cli.prompt import add_prompt_flags, read_prompt
from powerserve.storage.progress import SILENT, console_progress


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    options.add_model_flags(parser)
    add_prompt_flags(parser)
    parser.add_argument(
        *("-o", "--output"), type=Path, required=True, metavar="FILE", help="the file to write"
    )
    parser.add_argument(
        *("-c", "--ctx-size"),
        type=options.positive_number,
        metavar="N",
        help="tokens in a window (default: 512)",
    )
    parser.add_argument(
        "--chunks", type=options.positive_number, metavar="N", help="use at most N windows"
    )
    parser.add_argument(
        *("-t", "--threads"), type=options.whole_number, default=0, metavar="N", help="CPU threads"
    )
    parser.add_argument("--mmap", action="store_true", help="use weights from the file's pages")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: Namespace) -> int:
    """Measure, and print what was written."""
    from powerserve.cli.interrupt import interruptible
    from powerserve.convert.imatrix_task import ImatrixOptions, imatrix_task
    from powerserve.evaluate.windows import DEFAULT_WINDOW
    from powerserve.llm import DEFAULT_MODEL

    target: Path = arguments.output
    text = read_prompt(arguments)
    dataset = arguments.prompt_file.name if arguments.prompt_file else "text"
    source = options.find_model(arguments, DEFAULT_MODEL)
    check_target(target, source.weights, arguments.prompt_file)
    task_options = ImatrixOptions(
        window=arguments.ctx_size or DEFAULT_WINDOW,
        max_windows=arguments.chunks,
        num_threads=arguments.threads,
        use_mmap=arguments.mmap,
    )
    progress = SILENT if arguments.quiet else console_progress()
    with imatrix_task(source, text, dataset, target, task_options) as task:
        start = task.saved()
        total = len(task.windows)
        with (
            interruptible(task.backend),
            progress.count("windows", total, start.num_windows) as advance,
        ):
            for _ in task.run(start):
                advance(1)
    print(f"{target}: {total} windows of {task_options.window} tokens")
    return 0
