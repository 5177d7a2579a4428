"""Rewrite a GGUF model in a smaller type.

  powerserve quantize model-f16.gguf model-q4_k_m.gguf Q4_K_M
  powerserve quantize model-f16.gguf small.gguf IQ4_XS --imatrix model.imatrix
  powerserve quantize model-f16.gguf Q5_K_M --dry-run            sizes only

The result holds the same types as llama.cpp's files of the same name, and appears when it is whole.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.core.dtypes import BY_NAME, DType
from powerserve.core.errors import UsageError
from powerserve.storage.progress import SILENT, console_progress, format_bytes

if TYPE_CHECKING:
    from powerserve.convert.quantize import QuantizePlan


def configure(parser: ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("source", metavar="IN", help="the model, a GGUF file in F16, BF16 or F32")
    parser.add_argument(
        "target", metavar="OUT", nargs="?", type=Path, help="the file to write (not for --dry-run)"
    )
    parser.add_argument("type", metavar="TYPE", help="Q8_0, Q4_K_M …; a wrong one lists them all")
    parser.add_argument("--imatrix", type=Path, metavar="FILE", help="importance matrix to use")
    parser.add_argument(
        "--pure", action="store_true", help="one type for all matrices, instead of a mixture"
    )
    parser.add_argument(
        "--output-type",
        "--output-tensor-type",
        metavar="TYPE",
        help="type of the output layer",
    )
    parser.add_argument(
        "--embedding-type",
        "--token-embedding-type",
        metavar="TYPE",
        help="type of the token embedding",
    )
    parser.add_argument(
        "--allow-requantize", action="store_true", help="accept a model that is quantised already"
    )
    parser.add_argument("--dry-run", action="store_true", help="print sizes and write nothing")
    parser.add_argument(
        *("-t", "--threads"), type=options.whole_number, default=0, metavar="N", help="CPU threads"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def execute(arguments: Namespace) -> int:
    """Plan, write, and print what came out."""
    from powerserve.convert.imatrix_file import read_imatrix
    from powerserve.convert.quantize import plan_quantisation, write_quantised
    from powerserve.convert.quantize_types import TypeChoices
    from powerserve.convert.recipes import find_recipe
    from powerserve.storage.gguf import GGUFFile

    recipe = find_recipe(arguments.type)
    if arguments.target is None and not arguments.dry_run:
        raise UsageError("name the file to write: powerserve quantize IN OUT TYPE")
    choices = TypeChoices(
        arguments.pure, _dtype(arguments.output_type), _dtype(arguments.embedding_type)
    )
    importance = read_imatrix(arguments.imatrix) if arguments.imatrix else None
    progress = SILENT if arguments.quiet else console_progress()
    with GGUFFile.open(arguments.source) as model:
        allow = arguments.allow_requantize
        plan = plan_quantisation(model, recipe, choices, importance, allow_requantize=allow)
        if missing := plan.without_importance():
            progress.note(f"{arguments.imatrix} has no data for {len(missing)} matrices")
        if not arguments.dry_run:
            threads = arguments.threads
            write_quantised(plan, arguments.target, num_threads=threads, progress=progress)
        print(_summary(plan))
    return 0


def _dtype(name: str | None) -> DType | None:
    """The element type that a flag names, among those ggml quantises to without tables."""
    from powerserve.convert.recipes import element_types

    if name is None:
        return None
    dtype = BY_NAME.get(name.upper())
    if dtype not in element_types():
        known = ", ".join(map(str, element_types()))
        raise UsageError(f"there is no element type {name!r}; choose one of {known}")
    return dtype


def _summary(plan: QuantizePlan) -> str:
    """`98.4 MB from 270.9 MB, 4.93 bits per weight: 180 Q4_0, …`"""
    before = sum(tensor.source.size_bytes for tensor in plan.tensors)
    after = sum(tensor.header.size_bytes for tensor in plan.tensors)
    num_weights = sum(
        tensor.header.size_bytes // tensor.dtype.block_bytes * tensor.dtype.block_size
        for tensor in plan.tensors
    )
    counts = Counter(tensor.dtype.name for tensor in plan.tensors).most_common()
    types = ", ".join(f"{count} {name}" for name, count in counts)
    return (
        f"{format_bytes(plan.file_bytes)}: {format_bytes(before)} of tensors became "
        f"{format_bytes(after)}, {8 * after / num_weights:.2f} bits per weight ({types})"
    )
