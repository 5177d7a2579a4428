"""Compile small random graphs (two-layer perceptrons), run them and time them.

  powerserve qnn simple-test --model-num 2 --dims 512 1024

Without an NPU they run on Qualcomm's emulator, whose times say nothing about a phone: there this
shows that compiler, libraries and runtime work together. NAME.bin holds all graphs for a device.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from powerserve.cli import options
from powerserve.cli.qnn_flags import add_soc_flags, soc_from
from powerserve.storage.progress import SILENT, console_progress


def configure(parser: ArgumentParser) -> None:
    """Declare the flags, the original's among them."""
    parser.add_argument("--model-name", default="simple", metavar="NAME", help="default: simple")
    parser.add_argument(
        *("--model-num", "--graph-num"),
        type=options.positive_number,
        default=1,
        metavar="N",
        help="graphs (default: 1)",
    )
    parser.add_argument(
        "--no-convert", action="store_true", help="run what an earlier call has compiled"
    )
    parser.add_argument(
        "--repeat", type=options.positive_number, default=10, metavar="N", help="default: 10"
    )
    parser.add_argument(
        "--qnn-path",
        type=Path,
        metavar="DIR",
        help="folder of Qualcomm's libraries to run with (default: those of onnxruntime-qnn)",
    )
    parser.add_argument(
        *("-b", "--batch-size"), type=options.positive_number, default=32, help="default: 32"
    )
    parser.add_argument(
        "--dims",
        type=options.positive_number,
        nargs=2,
        default=(4096, 14336),
        metavar=("EMBED", "HIDDEN"),
        help="sizes of a perceptron (default: 4096 14336)",
    )
    parser.add_argument(
        "--output-folder", type=Path, default=Path("simple_qnn_test"), metavar="DIR"
    )
    add_soc_flags(parser, default="8750")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: Namespace) -> int:
    """Compile, run and print a line per graph."""
    from powerserve.backend.qnn.runtime.process import ProcessRuntime
    from powerserve.convert.qnn.compiler import CompileOptions, check_compiler
    from powerserve.convert.qnn.simple_test import Perceptron, SimpleTest, compile_test, run_test

    check_compiler()
    sizes = Perceptron(arguments.batch_size, *arguments.dims)
    test = SimpleTest(arguments.output_folder, arguments.model_name, arguments.model_num, sizes)
    if not arguments.no_convert:
        progress = SILENT if arguments.quiet else console_progress()
        compile_test(test, CompileOptions(soc_from(arguments)), progress)
    runtime = ProcessRuntime("Qualcomm's HTP", arguments.qnn_path)
    try:
        for timing in run_test(test, runtime, arguments.repeat):
            print(
                f"graph {timing.index}: {1000 * timing.best_s:.2f} ms at best, "
                f"{sizes.num_operations / timing.best_s / 1e9:.1f} GFLOP/s, "
                f"cosine to the CPU {timing.error.cosine:.6f}"
            )
    finally:
        runtime.close()
    return 0
