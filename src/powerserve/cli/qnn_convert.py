"""Make the NPU's files of a model: quantised, compiled, and compared with the CPU.

  powerserve qnn convert --model-folder Llama-3.2-1B-Instruct --soc 8gen3 --n-model-chunks 4

The model is a GGUF file, a model folder or a checkpoint of Hugging Face. The output folder becomes
`qnn/` of a model folder. A conversion that was stopped is continued by the same command. The flags
of the original's converter.py are all there. docs/npu.md explains the choices.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.qnn_flags import (
    add_model_flags,
    add_soc_flags,
    soc_from,
    stat_folder_from,
    texts_from,
)
from powerserve.core.errors import UsageError
from powerserve.storage.progress import SILENT, console_progress

if TYPE_CHECKING:
    from powerserve.convert.qnn.request import NpuConversion


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    add_model_flags(parser)
    _add_name_flags(parser)
    add_soc_flags(parser, default="8650")
    _add_graph_flags(parser)
    _add_quantisation_flags(parser)
    _add_work_flags(parser)


def execute(arguments: Namespace) -> int:
    """Convert and print the report."""
    from powerserve.convert.qnn.compiler import check_compiler

    check_compiler()  # before imports that would fail without it
    from powerserve.convert.qnn.build_folder import BuildFolder
    from powerserve.convert.qnn.pipeline import convert_for_npu

    request = _request(arguments)
    report = convert_for_npu(request, SILENT if arguments.silent else console_progress())
    if arguments.clear_build_files:
        BuildFolder(request.build).clear()
    for line in (*report.lines(), *(f"warning: {each}" for each in report.failures)):
        print(line)
    print(f"{arguments.output_folder}: {report.model} for {report.soc}")
    return 0


def _add_name_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("names")
    group.add_argument(
        "--model-name", default="", metavar="NAME", help="default: that of the folder or file"
    )
    group.add_argument(
        "--artifact-name",
        default="",
        metavar="NAME",
        help="begins the binaries' names (default: the model's)",
    )


def _add_graph_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("graphs")
    group.add_argument(
        "--batch-sizes",
        type=options.positive_number,
        nargs="+",
        default=[1, 12, 128],
        metavar="N",
        help="tokens of a step: 1 to decode, more for prompts and trees (default: 1 12 128)",
    )
    group.add_argument(
        *("--n-model-chunks", "--n-model-chunk"),
        type=options.positive_number,
        default=1,
        metavar="N",
        help="binaries that the layers are spread over (default: 1)",
    )
    group.add_argument(
        "--cache-size",
        type=options.positive_number,
        default=1920,
        metavar="N",
        help="tokens that the KV cache holds (default: 1920)",
    )
    group.add_argument(
        "--context-size",
        type=options.positive_number,
        default=2048,
        metavar="N",
        help="cache and largest batch together, at least (default: 2048)",
    )
    group.add_argument(
        "--cpu-lm-head", action="store_true", help="leave the output layer to the CPU"
    )


def _add_quantisation_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("quantisation")
    group.add_argument("--weight-bits", type=int, choices=(4, 8, 16), default=4, help="default: 4")
    group.add_argument(
        "--scales",
        choices=("minmax", "mse", "gptq"),
        default="gptq",
        help="how scales are found (default: gptq)",
    )
    group.add_argument(
        "--block-size",
        type=int,
        choices=(32, 64),
        help="weights that share a scale (default: a row)",
    )
    group.add_argument(
        "--w8-matrices",
        nargs="+",
        default=(),
        metavar="NAME",
        help="matrices of every layer that get 8 bits, such as attn_v attn_output ffn_down",
    )
    group.add_argument("--lm-head-bits", type=int, choices=(4, 8, 16), default=8, help="default: 8")
    group.add_argument("--fp16-lm-head", action="store_true", help="the same as --lm-head-bits 16")
    for flag, what in (("heads", "attention heads"), ("neurons", "feed-forward neurons")):
        group.add_argument(
            f"--fp16-{flag}",
            type=options.whole_number,
            default=0,
            metavar="N",
            help=f"{what} of each layer that stay in floating point: the first of its stat file",
        )
    for flag in ("attention", "ffn"):
        group.add_argument(
            f"--fp16-{flag}-layers",
            type=options.whole_number,
            nargs="*",
            default=(),
            metavar="LAYER",
            help="layers of which this half stays in floating point",
        )


def _add_work_flags(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("work")
    group.add_argument(
        "--output-folder",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="default: ./output",
    )
    group.add_argument(
        "--n-threads",
        type=options.positive_number,
        default=2,
        metavar="N",
        help="compilations at a time, as far as memory goes (default: 2)",
    )
    group.add_argument(
        "--optimisation",
        type=int,
        choices=(1, 2, 3),
        default=3,
        help="how hard the compiler tries (default: 3)",
    )
    group.add_argument(
        "--emulator", action="store_true", help="deliver emulator/ too, to run without a phone"
    )
    group.add_argument("--cpu", action="store_true", help="deliver the quantised graphs too: cpu/")
    group.add_argument(
        "--no-gate", action="store_true", help="do not compare with the CPU (emulation is slow)"
    )
    group.add_argument("--force", action="store_true", help="deliver what the comparison refuses")
    group.add_argument("--clear-build-files", action="store_true", help="keep only the output")
    group.add_argument("--silent", action="store_true", help="show no progress")


def _request(arguments: Namespace) -> NpuConversion:
    from powerserve.convert.qnn.compiler import CompileOptions
    from powerserve.convert.qnn.outliers import OutlierCounts
    from powerserve.convert.qnn.plan import GraphSizes, sorted_batch_sizes
    from powerserve.convert.qnn.quantise import QuantisationOptions, ScaleSearch
    from powerserve.convert.qnn.request import NpuConversion, Outliers

    source: Path = arguments.model_folder
    name = arguments.model_name or source.resolve().stem
    return NpuConversion(
        source=source,
        name=_file_name(arguments.artifact_name or name),
        texts=texts_from(arguments),
        build=arguments.build_folder,
        output=arguments.output_folder,
        compiling=CompileOptions(soc_from(arguments), arguments.optimisation),
        sizes=GraphSizes(
            sorted_batch_sizes(arguments.batch_sizes), arguments.cache_size, arguments.context_size
        ),
        num_chunks=arguments.n_model_chunks,
        with_lm_head=not arguments.cpu_lm_head,
        quantisation=QuantisationOptions(
            arguments.weight_bits,
            ScaleSearch(arguments.scales),
            arguments.block_size,
            16 if arguments.fp16_lm_head else arguments.lm_head_bits,
            frozenset(arguments.w8_matrices),
        ),
        outliers=Outliers(
            stat_folder_from(arguments),
            OutlierCounts(arguments.fp16_heads, arguments.fp16_neurons),
            frozenset(arguments.fp16_attention_layers),
            frozenset(arguments.fp16_ffn_layers),
        ),
        num_processes=arguments.n_threads,
        with_emulator=arguments.emulator,
        with_cpu=arguments.cpu,
        compare=not arguments.no_gate,
        force=arguments.force,
    )


def _file_name(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise UsageError(f"the artifact name {name!r} cannot begin a file's name")
    return name
