"""Convert models from other formats to GGUF.

powerserve convert hf-to-gguf DIR [OUT]     a Hugging Face checkpoint (safetensors)
powerserve convert embeddings DIR OUT       only its embedding table, whatever the architecture
"""

from __future__ import annotations

import argparse
from pathlib import Path

from powerserve.core.errors import UsageError
from powerserve.storage.progress import SILENT, Progress, console_progress, format_bytes

OUT_TYPES = ("f32", "f16", "bf16", "q8_0")


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of each conversion."""
    conversions = parser.add_subparsers(dest="conversion", required=True, metavar="CONVERSION")
    _configure_hf_to_gguf(conversions.add_parser("hf-to-gguf", allow_abbrev=False))
    _configure_embeddings(conversions.add_parser("embeddings", allow_abbrev=False))


def execute(arguments: argparse.Namespace) -> int:
    """Convert, and print the file that was written."""
    progress = SILENT if arguments.quiet else console_progress()
    if arguments.conversion == "embeddings":
        extract(arguments.folder, arguments.out, arguments.outtype, progress)
    else:
        _convert(arguments, progress)
    return 0


def extract(folder: Path, out: Path, out_type: str, progress: Progress) -> None:
    """Write a checkpoint's embedding table to `out`. Raises PowerServeError."""
    from powerserve.convert.embedding_table import extract_embedding

    extract_embedding(folder, out, out_type, progress)
    _print_written(out)


def _configure_hf_to_gguf(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="with config.json and safetensors files"
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="a file or folder (default: DIR-TYPE.gguf, here)"
    )
    _add_out_type(parser, (*OUT_TYPES, "auto"), "auto")
    parser.add_argument("--name", default="", help="the model's name (default: that of DIR)")
    content = parser.add_mutually_exclusive_group()
    content.add_argument("--vocab-only", action="store_true", help="no tensors")
    content.add_argument("--only-embed", action="store_true", help="only the embedding table")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _configure_embeddings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="with safetensors files")
    parser.add_argument("out", type=Path, metavar="OUT", help="the GGUF file to write")
    _add_out_type(parser, OUT_TYPES, "f32")
    parser.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _add_out_type(parser: argparse.ArgumentParser, choices: tuple[str, ...], default: str) -> None:
    parser.add_argument(
        "--outtype", choices=choices, default=default, help=f"of matrices (default: {default})"
    )


def _convert(arguments: argparse.Namespace, progress: Progress) -> None:
    from powerserve.convert.hf_to_gguf import Content, ConversionOptions, convert

    content = Content.ALL
    if arguments.vocab_only:
        content = Content.VOCABULARY
    elif arguments.only_embed:
        content = Content.EMBEDDING
    options = ConversionOptions(arguments.outtype, content, arguments.name)
    out = _out_file(arguments.folder, arguments.out, arguments.outtype)
    convert(arguments.folder, out, options, progress)
    _print_written(out)


def _out_file(folder: Path, out: Path | None, out_type: str) -> Path:
    if out is not None and not out.is_dir():
        return out
    stem = folder.resolve().name
    if not stem:
        raise UsageError("name the file to write: the checkpoint's folder has no name")
    suffix = "" if out_type == "auto" else f"-{out_type.upper()}"
    return (out or Path()) / f"{stem}{suffix}.gguf"


def _print_written(path: Path) -> None:
    print(f"{path}: {format_bytes(path.stat().st_size)}")
