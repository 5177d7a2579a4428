"""Convert models from other formats to GGUF.

powerserve convert hf-to-gguf DIR [OUT]     a Hugging Face checkpoint (safetensors)
"""

from __future__ import annotations

import argparse
from pathlib import Path

from powerserve.convert.checkpoint import Checkpoint
from powerserve.convert.element_types import AUTO, OUT_TYPES
from powerserve.convert.hf_to_gguf import Content, ConversionOptions, convert
from powerserve.core.errors import UsageError
from powerserve.storage.progress import SILENT, console_progress, format_bytes


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of each conversion."""
    conversions = parser.add_subparsers(dest="conversion", required=True, metavar="CONVERSION")
    _configure_hf_to_gguf(
        conversions.add_parser(
            "hf-to-gguf", help="a Hugging Face checkpoint to a GGUF file", allow_abbrev=False
        )
    )


def execute(arguments: argparse.Namespace) -> int:
    """Convert, and print the file that was written."""
    content = Content.ALL
    if arguments.vocab_only:
        content = Content.VOCABULARY
    elif arguments.only_embed:
        content = Content.EMBEDDING
    if arguments.out is not None and arguments.outfile is not None:
        raise UsageError("name the file to write once: OUT and --outfile are the same")
    out = _out_file(arguments.folder, arguments.out or arguments.outfile, arguments.outtype)
    options = ConversionOptions(arguments.outtype, content, arguments.name)
    convert(arguments.folder, out, options, SILENT if arguments.quiet else console_progress())
    print_written(out)
    return 0


def print_written(path: Path) -> None:
    """Say what was written."""
    print(f"{path}: {format_bytes(path.stat().st_size)}")


def _configure_hf_to_gguf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="with config.json and safetensors files"
    )
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        help="a file, or a folder for DIR-TYPE.gguf (default: the current one)",
    )
    parser.add_argument("--outfile", type=Path, metavar="OUT", help="the same")
    parser.add_argument(
        "--outtype",
        choices=(*OUT_TYPES, AUTO),
        default=AUTO,
        help="type of matrices (default: auto, which is bf16 or f16, as the checkpoint is)",
    )
    parser.add_argument(
        "--name", "--model-name", default="", help="the model's name (default: that of DIR)"
    )
    content = parser.add_mutually_exclusive_group()
    content.add_argument("--vocab-only", action="store_true", help="only metadata, no tensors")
    content.add_argument(
        "--only-embed", "--embd-only", action="store_true", help="only the embedding table"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _out_file(folder: Path, out: Path | None, out_type: str) -> Path:
    if out is not None and not out.is_dir():
        return out
    suffix = "" if out_type == AUTO else f"-{out_type.upper()}"
    return (out or Path()) / f"{Checkpoint(folder).name}{suffix}.gguf"
